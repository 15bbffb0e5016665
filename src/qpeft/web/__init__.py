"""What every web page of qpeft is made of: the service's dashboard, `qpeft ui` and reports share these templates, styles, scripts
and drawings. Pages are rendered here as HTML and inline SVG; scripts only enhance them."""

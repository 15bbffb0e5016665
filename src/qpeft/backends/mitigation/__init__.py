"""Error mitigation: readout correction around a backend, zero-noise extrapolation around an executor."""

"""Worker processes: they lease jobs over HTTP, run circuits and send results. No database."""

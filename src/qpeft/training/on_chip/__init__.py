"""Training with circuits on a backend: the session of a run, and its cost estimate."""

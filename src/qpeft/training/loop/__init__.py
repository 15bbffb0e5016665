"""A training run: the run, its trainer, its folder."""

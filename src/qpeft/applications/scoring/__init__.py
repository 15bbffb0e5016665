"""Task metrics of a finished run, next to the base model and plain baselines."""

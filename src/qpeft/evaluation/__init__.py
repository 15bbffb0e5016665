"""Evaluating a trained adapter: held-out loss, generation, circuits on a backend, lm-eval."""

"""Surrogates: classical functions that stand for a circuit after it ran at a few inputs."""

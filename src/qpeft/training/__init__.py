"""Training: data, recipes, base models, the training loop, and circuits on a backend."""

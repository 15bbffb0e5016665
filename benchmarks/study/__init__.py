"""Does it beat LoRA? Methods, learning rates, seeds and tasks, with equal tuning budgets: `python -m benchmarks.study`."""

"""The simulator's engine in PyTorch: every device, every dtype."""

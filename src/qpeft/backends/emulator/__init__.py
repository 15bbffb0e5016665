"""The noisy chip emulator: chips as data, noise, routing, packing."""

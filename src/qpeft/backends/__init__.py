"""Where circuits run besides the simulator; see base.py for the seam and registry.py for the names."""

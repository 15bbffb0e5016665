"""The state-vector simulator: one torch engine and one compiled C engine behind `simulate`."""

"""The optional compiled kernel of the simulator: `program` writes circuits as flat programs, `native` runs them in C."""

"""A chat API on a run, with several adapters on one base model."""

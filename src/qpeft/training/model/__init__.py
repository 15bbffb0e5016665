"""Base models: loading, number formats, the loss on labelled tokens."""

"""Training examples: files, formats, token ids."""

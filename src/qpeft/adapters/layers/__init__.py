"""Building blocks that several adapter methods share."""

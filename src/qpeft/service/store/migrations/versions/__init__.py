"""One file a version; the first builds everything."""

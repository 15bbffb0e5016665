"""Comparisons of methods: many runs, one file of records."""

"""Backends of other people's packages and services, one file each."""

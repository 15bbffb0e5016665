"""Doors into other people's frameworks that need a class of ours: one file each, imported by the framework."""

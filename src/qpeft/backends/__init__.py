"""Backends: where circuits run. The interface is in base.py, the names are in registry.py."""

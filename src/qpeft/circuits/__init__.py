"""Quantum circuits as frozen data, and what can be done with them: text, simulation."""

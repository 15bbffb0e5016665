"""Circuits as text: OpenQASM 2 and 3, OriginIR."""

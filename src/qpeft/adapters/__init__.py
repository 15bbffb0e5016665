"""Adapter methods, one file each, and the one bridge to PEFT."""

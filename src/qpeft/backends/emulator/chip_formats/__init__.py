"""Chips from and to what other tools write."""

from qpeft.backends.emulator.chip_formats.origin import from_chip_info
from qpeft.backends.emulator.chip_formats.qiskit import (
    aer_simulator,
    from_noise_model,
    from_target,
    placed_circuit,
    to_noise_model,
    to_target,
)
from qpeft.backends.emulator.chip_formats.unified_quantum import from_unified_quantum, to_unified_quantum, unified_quantum_file

__all__ = [
    "aer_simulator",
    "from_chip_info",
    "from_noise_model",
    "from_target",
    "from_unified_quantum",
    "placed_circuit",
    "to_noise_model",
    "to_target",
    "to_unified_quantum",
    "unified_quantum_file",
]

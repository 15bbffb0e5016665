"""Circuit <-> OpenQASM 2 and 3 text: `to_qasm2`, `to_qasm3`, `from_qasm`.

Qubits keep their labels: `q[k]` is qubit k. Basis states are another matter: tools that put qubit 0 in the lowest bit (Qiskit)
read the same file as the same circuit with the bits of each basis index reversed. States agree up to a global phase.
"""

from qpeft.circuits.text.qasm.reader import from_qasm
from qpeft.circuits.text.qasm.writer import to_qasm2, to_qasm3

__all__ = ["from_qasm", "to_qasm2", "to_qasm3"]

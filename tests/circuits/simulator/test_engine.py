"""Which engine does what: the C engine where it can, torch elsewhere, and torch alone where the kernel is switched off."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qpeft.circuits import ansatz
from qpeft.circuits.simulator import engine
from qpeft.circuits.simulator.c_engine import columns as c_columns
from qpeft.circuits.simulator.c_engine import expectations as c_expectations
from qpeft.circuits.simulator.c_engine import library
from qpeft.circuits.simulator.c_engine import polynomials as c_polynomials
from qpeft.circuits.simulator.c_engine.compiler import MAX_QUBITS
from qpeft.circuits.simulator.torch_engine import columns as torch_columns
from qpeft.circuits.simulator.torch_engine import expectations as torch_expectations
from qpeft.circuits.simulator.torch_engine import polynomials as torch_polynomials
from qpeft.circuits.simulator.torch_engine.compiler import compile_circuit

built = pytest.mark.skipif(not library.variants(), reason="the compiled kernel is not built here")
QTHA, REAL, WIDE = (compile_circuit(c) for c in (ansatz.qtha(3, 1), ansatz.ry_cnot(3, 1), ansatz.qtha(MAX_QUBITS + 1, 1)))


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_c_engine_takes_what_it_can(dtype: torch.dtype, choose_kernel: Callable[[str], None]) -> None:
    choose_kernel("")
    like = torch.zeros(1, dtype=dtype)
    assert engine.for_expectations(QTHA, like) is c_expectations
    assert engine.for_columns(REAL, like) is c_columns
    assert engine.for_polynomials(torch.zeros(3, 2, dtype=dtype), torch.zeros(1, 4, dtype=dtype)) is c_polynomials


@built
def test_torch_takes_the_rest(choose_kernel: Callable[[str], None]) -> None:
    choose_kernel("")
    assert engine.for_expectations(WIDE, torch.zeros(1)) is torch_expectations
    assert engine.for_expectations(QTHA, torch.zeros(1, device="meta")) is torch_expectations
    assert engine.for_columns(QTHA, torch.zeros(1)) is torch_columns  # its unitary is not real
    assert engine.for_polynomials(torch.zeros(3, 2, dtype=torch.float64), torch.zeros(1, 4)) is torch_polynomials


def test_off_leaves_all_to_torch(choose_kernel: Callable[[str], None]) -> None:
    choose_kernel("off")
    assert engine.for_expectations(QTHA, torch.zeros(1)) is torch_expectations
    assert engine.for_columns(REAL, torch.zeros(1)) is torch_columns
    assert engine.for_polynomials(torch.zeros(3, 2), torch.zeros(1, 4)) is torch_polynomials

"""The Triton kernel under Triton's interpreter, against the torch simulator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qpeft.circuits import ansatz, tables
from qpeft.circuits.ir import Circuit, Observable, Op
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.simulator.torch_engine.compiler import compile_circuit
from tests.circuits.test_simulate import case

needs_triton = pytest.mark.skipif(not tables.available(), reason='needs Triton, 300 MB: pip install "qpeft[triton]"')


@pytest.fixture
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when the kernel's module is first imported


def compare(circuit: Circuit, observables: tuple[Observable, ...] | None, inputs: Tensor, angles: Tensor, tolerance: float) -> None:
    plan = compile_circuit(circuit, observables)
    x, a = inputs.double().requires_grad_(), angles.double().requires_grad_()
    out = Simulator("autograd").compile(circuit, observables)(x, a)
    grad = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    used = out + 0 * (x.sum() + a.sum())
    want = [out.detach(), *torch.autograd.grad(used, (x, a), grad)]
    for recording in (True, False):
        given = (grad.to(inputs.dtype), inputs, angles)
        found = [tables.values(plan, inputs, angles), *tables.gradients(plan, *given, recording=recording)]
        for ours, theirs in zip(found, want, strict=True):
            assert ours.dtype == inputs.dtype
            torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


@needs_triton
@pytest.mark.usefixtures("_interpreter")
@pytest.mark.parametrize(("n", "seed"), [(1, 1), (2, 2), (3, 3), (5, 4), (7, 5)])
def test_random_circuits(n: int, seed: int) -> None:
    circuit, observables, inputs, angles = case(n, 20, seed)
    compare(circuit, observables, inputs, angles, 1e-11)


@needs_triton
@pytest.mark.usefixtures("_interpreter")
@pytest.mark.parametrize("circuit", [ansatz.qtha(3, 2), ansatz.hardware_efficient(4, 2)])
def test_several_blocks_of_samples_in_float32(circuit: Circuit) -> None:
    from qpeft.circuits.simulator import triton_kernel

    generator = torch.Generator().manual_seed(1)
    inputs, angles = torch.randn(300, circuit.n_inputs, generator=generator), torch.randn(circuit.n_angles, generator=generator)
    before = triton_kernel.PROGRAMS
    triton_kernel.PROGRAMS = 2  # fewer than blocks: each program takes more than one
    try:
        compare(circuit, None, inputs, angles, 1e-4)
    finally:
        triton_kernel.PROGRAMS = before


@needs_triton
@pytest.mark.usefixtures("_interpreter")
def test_no_samples_inputs_or_gates() -> None:
    circuit = ansatz.qtha(2, 1)
    plan = compile_circuit(circuit)
    assert tables.values(plan, torch.zeros(0, 2), torch.zeros(8)).shape == (0, 2)
    bell = Circuit(2, (Op("h", (0,)), Op("cx", (0, 1))))
    compare(bell, (Observable.pauli("ZZ"), Observable.pauli("XX")), torch.zeros(2, 0), torch.zeros(0), 1e-6)
    compare(Circuit(2, ()), None, torch.zeros(2, 0), torch.zeros(0), 1e-6)


def test_tables_are_those_of_the_gates() -> None:
    """Stages multiply out to the state, in plain torch, whether or not Triton is there."""
    circuit, observables, inputs, angles = case(4, 25, 9, batch=1)
    own = tables.Tables(compile_circuit(circuit, observables), angles)
    psi = torch.zeros(16, dtype=torch.complex128)
    psi[0] = 1
    for k, (stay_re, stay_im, move_re, move_im) in enumerate(own(angles).transpose(1, 2)):
        if (row := int(own.fixed["data"][k])) >= 0:
            psi = psi * torch.exp(1j * (own.fixed["rates"][row] @ inputs[0]))
        psi = torch.complex(stay_re, stay_im) * psi + torch.complex(move_re, move_im) * psi[own.fixed["partner"][k].long()]
    weights = torch.view_as_complex(own.fixed["weights"])
    found = sum((w @ (psi.conj() * psi[f.long()])).real for w, f in zip(weights, own.fixed["flip"], strict=True))
    torch.testing.assert_close(found, Simulator().compile(circuit, observables)(inputs[0], angles), atol=1e-12, rtol=0)

"""The compiled kernel against a plain numpy state vector and against torch's recorded route, on every variant this machine runs."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qpeft.circuits import ansatz
from qpeft.circuits.ir import GATES, Angle, Circuit, Observable, Op
from qpeft.circuits.simulator.c_engine import expectations as kernel
from qpeft.circuits.simulator.c_engine import library
from qpeft.circuits.simulator.c_engine.compiler import MAX_QUBITS, Bytecode, compile_bytecode
from qpeft.circuits.simulator.c_engine.stages import UnsupportedError
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.simulator.torch_engine.compiler import SimulatedCircuit, compile_circuit
from qpeft.errors import CircuitError
from tests import reference
from tests.circuits.simulator.c_engine.sanitized import SANITIZERS, gcc
from tests.strategies import circuits

DOUBLE = torch.float64
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}

built = pytest.mark.skipif(not library.variants(), reason="the compiled kernel is not built here")


def random_circuit(n: int, depth: int, seed: int) -> Circuit:
    """Any gates of the table; angles from three inputs and four shared parameters, repeated, scaled, shifted and constant."""
    rng = np.random.default_rng(seed)
    names = [name for name, spec in GATES.items() if spec.n_qubits <= n]
    ops = []
    for _ in range(depth):
        spec = GATES[rng.choice(names)]
        angle = None
        if spec.parametrised:
            index = None if rng.random() < 0.1 else int(rng.integers(7))
            angle = Angle(index, float(rng.choice([1.0, -0.5, 2.0])), float(rng.choice([0.0, 0.3])))
        ops.append(Op(spec.name, tuple(int(q) for q in rng.choice(n, spec.n_qubits, replace=False)), angle))
    return Circuit(n, tuple(ops), 3, 7)


def random_observables(n: int, seed: int) -> tuple[Observable, ...]:
    rng = np.random.default_rng(seed)
    strings = ["".join(rng.choice(list("IXYZ"), n)) for _ in range(3)]
    mixed = Observable((*Observable.pauli(strings[0], 0.5).terms, *Observable.pauli(strings[1], -2.0).terms, (0.25, ())))
    return (Observable.pauli(strings[2]), mixed, Observable.z(n - 1))


def arguments(compiled: SimulatedCircuit, batch: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A gradient of the values, inputs and angles."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, len(compiled.observables)), (batch, compiled.circuit.n_inputs), (compiled.circuit.n_angles,))
    grad, inputs, angles = (torch.randn(shape, dtype=DOUBLE, generator=generator).to(dtype) for shape in shapes)
    return grad, inputs, angles


def by_torch(compiled: SimulatedCircuit, grad: Tensor, inputs: Tensor, angles: Tensor) -> list[Tensor]:
    """Values and gradients in float64 through autograd of the torch simulator."""
    x, a = inputs.to(DOUBLE).requires_grad_(), angles.to(DOUBLE).requires_grad_()
    out = Simulator("autograd").compile(compiled.circuit, compiled.observables)(x, a)
    used = out + 0 * (x.sum() + a.sum())  # a circuit may use neither
    return [out.detach(), *torch.autograd.grad(used, (x, a), grad.to(DOUBLE))]


def by_kernel(compiled: SimulatedCircuit, grad: Tensor, inputs: Tensor, angles: Tensor) -> list[Tensor]:
    """Values and gradients from two calls, which those of one call equal."""
    apart = [kernel.values(inputs, angles, compiled), *kernel.gradients(grad, inputs, angles, compiled)]
    for one, other in zip(kernel.values_and_gradients(grad, inputs, angles, compiled), apart, strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
    return apart


def assert_close(ours: list[Tensor], want: list[Tensor], dtype: torch.dtype) -> None:
    for a, b in zip(ours, want, strict=True):
        assert a.dtype == dtype
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a.to(DOUBLE), b, rtol=0, atol=TOLERANCE[dtype] * scale)


@built
@settings(max_examples=100, deadline=None)
@given(circuits(max_qubits=4, max_ops=14), st.integers(0, 10**6))
def test_values_are_those_of_a_plain_state_vector(circuit: Circuit, seed: int) -> None:
    compiled = compile_circuit(circuit, random_observables(circuit.n_qubits, seed))
    assert kernel.takes(compiled)
    _, inputs, angles = arguments(compiled, 2, DOUBLE, seed)
    ours = kernel.values(inputs, angles, compiled)
    for row, x in zip(ours, inputs, strict=True):
        want = [reference.expectation(circuit, [*x.tolist(), *angles.tolist()], o) for o in compiled.observables]
        np.testing.assert_allclose(row.numpy(), want, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("n", range(1, 11))
def test_values_and_gradients_of_random_circuits(variant: str, n: int, dtype: torch.dtype) -> None:
    for seed in range(4 if n < 8 else 1):
        compiled = compile_circuit(random_circuit(n, 30, 50 * n + seed), random_observables(n, seed))
        given = arguments(compiled, 5, dtype, seed)
        assert_close(by_kernel(compiled, *given), by_torch(compiled, *given), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("batch", [1, 7, 8, 9, 33, 513])
def test_batches_of_any_size(variant: str, batch: int, dtype: torch.dtype) -> None:
    for circuit in (ansatz.hardware_efficient(4, 2), ansatz.qtha(3, 2)):
        compiled = compile_circuit(circuit, None)
        given = arguments(compiled, batch, dtype, batch)
        assert_close(by_kernel(compiled, *given), by_torch(compiled, *given), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("n", [5, 6, 7])
def test_rows_of_any_width(variant: str, n: int, dtype: torch.dtype) -> None:
    """Rows of 3 to 8 numbers change places with lanes in registers: batch 33 has whole groups and a rest."""
    compiled = compile_circuit(ansatz.qtha(n, 1), None)
    given = arguments(compiled, 33, dtype, n)
    assert_close(by_kernel(compiled, *given), by_torch(compiled, *given), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("n", [2, 4, 5, 8])
def test_a_samples_values_do_not_depend_on_the_number_of_samples(variant: str, n: int, dtype: torch.dtype) -> None:
    """Few samples go another way through the kernel, to the same bits: also where a product of cosines leaves the range."""
    for seed, circuit in enumerate([ansatz.qtha(n, 3), *(random_circuit(n, 40, 7 * n + seed) for seed in range(4))]):
        compiled = compile_circuit(circuit, random_observables(n, seed))
        _, inputs, angles = arguments(compiled, 16, dtype, seed)
        for x, a in ((inputs, angles), (torch.full_like(inputs, torch.pi), torch.zeros_like(angles))):
            whole = kernel.values(x, a, compiled)
            for few in (1, 2, 4):
                assert torch.equal(torch.cat([kernel.values(rows, a, compiled) for rows in x.split(few)]), whole)


def test_an_empty_batch(variant: str) -> None:
    compiled = compile_circuit(ansatz.qtha(3, 2), None)
    values, grad_inputs, grad_angles = by_kernel(compiled, *arguments(compiled, 0, torch.float32, 0))
    assert values.shape == grad_inputs.shape == (0, 3)
    assert torch.equal(grad_angles, torch.zeros(24))


@pytest.mark.parametrize("circuit", [ansatz.qtha(8, 8), ansatz.hardware_efficient(8, 2), ansatz.hardware_efficient(12, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_deep_and_wide_circuits(variant: str, circuit: Circuit, dtype: torch.dtype) -> None:
    """Deep enough in float64 that the adjoint pass undoes states instead of keeping them all."""
    compiled = compile_circuit(circuit, None)
    given = arguments(compiled, 3, dtype, 0)
    assert_close(by_kernel(compiled, *given), by_torch(compiled, *given), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_angles_at_which_cosines_vanish_or_are_large(variant: str, dtype: torch.dtype) -> None:
    """Half a turn on all qubits at once, multiples of it, none, and angles far outside the usual range."""
    compiled = compile_circuit(ansatz.qtha(9, 2), None)
    grad, inputs, angles = arguments(compiled, 12, dtype, 3)
    inputs[0], inputs[1], inputs[2], inputs[3] = math.pi, -math.pi, 0.0, 3 * math.pi
    inputs[4], inputs[5], inputs[6] = 30 * inputs[4], 3e3 * inputs[5], 1e5 * inputs[6]
    for shared in (angles, torch.full_like(angles, math.pi), torch.zeros_like(angles), 100 * angles):
        given = (grad, inputs, shared)
        assert_close(by_kernel(compiled, *given), by_torch(compiled, *given), dtype)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sample_that_is_not_finite_spoils_no_other(variant: str, bad: float) -> None:
    compiled = compile_circuit(ansatz.qtha(5, 2), None)
    grad, inputs, angles = arguments(compiled, 20, torch.float32, 1)
    want = by_kernel(compiled, grad, inputs, angles)
    inputs[3, 1] = bad
    values, grad_inputs, grad_angles = by_kernel(compiled, grad, inputs, angles)
    others = [i for i in range(20) if i != 3]
    assert values[3].isnan().any()
    assert grad_inputs[3].isnan().any()
    assert grad_angles.isnan().any()
    torch.testing.assert_close(values[others], want[0][others], rtol=0, atol=0)
    torch.testing.assert_close(grad_inputs[others], want[1][others], rtol=0, atol=0)


def test_circuits_without_inputs_angles_or_gates(variant: str) -> None:
    bell = Circuit(2, (Op("h", (0,)), Op("cx", (0, 1))))
    compiled = compile_circuit(bell, tuple(map(Observable.pauli, ("ZZ", "XX", "ZI"))))
    values, grad_inputs, grad_angles = by_kernel(compiled, *arguments(compiled, 4, torch.float32, 0))
    torch.testing.assert_close(values, torch.tensor([[1.0, 1.0, 0.0]] * 4))
    assert grad_inputs.shape == (4, 0)
    assert grad_angles.shape == (0,)
    empty = compile_circuit(Circuit(3, ()), (Observable.z(1), Observable(((3.0, ()),)), Observable(())))
    torch.testing.assert_close(kernel.values(torch.zeros(2, 0), torch.zeros(0), empty), torch.tensor([[1.0, 3.0, 0.0]] * 2))


def test_tensors_need_not_be_contiguous(variant: str) -> None:
    compiled = compile_circuit(ansatz.qtha(4, 1), None)
    grad, inputs, angles = arguments(compiled, 9, DOUBLE, 5)
    want = by_kernel(compiled, grad, inputs, angles)
    strided = (grad.T.contiguous().T, inputs.T.contiguous().T, torch.stack([angles, angles], 1)[:, 0])
    assert not any(t.is_contiguous() for t in strided)
    for a, b in zip(by_kernel(compiled, *strided), want, strict=True):
        assert torch.equal(a, b)


def test_a_large_batch_keeps_its_precision(variant: str) -> None:
    """The angles' gradient is a sum over samples: in float32 it must not lose digits as the batch grows."""
    compiled = compile_circuit(ansatz.qtha(2, 2), None)
    _, inputs, angles = arguments(compiled, 100_000, DOUBLE, 6)
    grad = torch.ones(100_000, 2, dtype=DOUBLE)
    want = kernel.gradients(grad, inputs.float().double(), angles.float().double(), compiled)[1]
    ours = kernel.gradients(grad.float(), inputs.float(), angles.float(), compiled)[1]
    assert float((ours - want).abs().max() / want.abs().max()) < 2e-6


@built
def test_threads_repeat_their_result_and_agree() -> None:
    compiled = compile_circuit(ansatz.hardware_efficient(6, 2), None)
    given = arguments(compiled, 4001, torch.float32, 7)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = by_kernel(compiled, *given)
        torch.set_num_threads(2)
        two = by_kernel(compiled, *given)
        for a, b, again in zip(alone, two, by_kernel(compiled, *given), strict=True):
            assert torch.equal(b, again)
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        with ThreadPoolExecutor(4) as pool:
            for result in pool.map(lambda _: by_kernel(compiled, *given), range(8)):
                for a, b in zip(result, two, strict=True):
                    assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


def test_switched_off(choose_kernel: Callable[[str], None]) -> None:
    choose_kernel("off")
    compiled = compile_circuit(ansatz.qtha(2, 1), None)
    assert not library.available()
    assert library.describe() == "no compiled kernel: switched off by QPEFT_KERNEL"
    with pytest.raises(CircuitError, match="no compiled kernel"):
        kernel.values(torch.zeros(1, 2), torch.zeros(8), compiled)


@built
def test_a_variant_that_is_not_there_is_refused(choose_kernel: Callable[[str], None]) -> None:
    choose_kernel("sse9")
    with pytest.raises(CircuitError, match=r"QPEFT_KERNEL names no variant.*'sse9'.*baseline.*off"):
        library.available()


def test_a_missing_or_old_library_is_said_so(monkeypatch: pytest.MonkeyPatch, choose_kernel: Callable[[str], None]) -> None:
    monkeypatch.setattr(library, "LIBRARY", "nothing.so")
    library.loaded.cache_clear()
    choose_kernel("")
    try:
        assert not library.available()
        assert "not built" in library.describe()
        assert library.variants() == ()
    finally:
        library.loaded.cache_clear()


def test_the_variant_in_use_is_described(variant: str) -> None:
    assert library.available()
    assert library.describe() == f"compiled kernel: {variant} (chosen by QPEFT_KERNEL)"


def test_too_many_qubits_are_left_to_torch() -> None:
    circuit = Circuit(MAX_QUBITS + 1, (Op("h", (0,)),))
    assert not kernel.takes(compile_circuit(circuit, None))
    with pytest.raises(UnsupportedError, match="13 qubits, at most 12"):
        compile_bytecode(circuit, (Observable.z(0),))


def test_every_gate_of_the_table_is_taken() -> None:
    for spec in GATES.values():
        op = Op(spec.name, tuple(range(spec.n_qubits)), Angle(shift=0.4) if spec.parametrised else None)
        assert len(compile_bytecode(Circuit(2, (op,)), (Observable.z(0), Observable.pauli("XX")))) == 2


def write_cases(path: Path) -> int:
    """Programs with arguments and results for expectations_driver.c; returns how many."""
    cases = [(compile_circuit(random_circuit(n, 25, n), random_observables(n, n)), 7 * n - 4) for n in range(1, 9)]
    more = (ansatz.qtha(3, 2), ansatz.qtha(8, 16), ansatz.hardware_efficient(5, 1), ansatz.hardware_efficient(6, 2))
    cases += [(compile_circuit(circuit, None), 70) for circuit in more]
    written = 0
    with path.open("wb") as file:
        for compiled, batch in cases:
            grad, inputs, angles = arguments(compiled, batch, DOUBLE, batch)
            n_obs = len(compiled.observables)
            for bytecode in compile_bytecode(compiled.circuit, compiled.observables):
                want = _run_alone(bytecode, grad, inputs, angles)
                header = (
                    len(bytecode.code),
                    len(bytecode.numbers),
                    batch,
                    compiled.circuit.n_inputs,
                    compiled.circuit.n_angles,
                    n_obs,
                )
                file.write(np.array(header, dtype=np.int32).tobytes() + bytecode.code.tobytes() + bytecode.numbers.tobytes())
                for tensor in (grad, inputs, angles, *want):
                    file.write(tensor.numpy().tobytes())
                written += 1
    return written


def _run_alone(bytecode: Bytecode, grad: Tensor, inputs: Tensor, angles: Tensor) -> list[Tensor]:
    call = kernel._bound(bytecode, library.VARIANTS.index(library.variants()[-1]))
    out, grad_inputs, grad_angles = torch.empty_like(grad), torch.empty_like(inputs), torch.empty_like(angles)
    call(inputs, angles, out)
    call(inputs, angles, None, grad, grad_inputs, grad_angles)
    return [out, grad_inputs, grad_angles]


def drive(folder: Path, compiler: str, flags: list[str], *through: str) -> None:
    """Build the C code with its driver, and run all cases (`through` an emulator)."""
    source, driver = Path(library.__file__).parent, folder / "driver"
    files = [
        *(source / f"{name}.c" for name in ("entry", "threads", "lanes", "polynomial")),
        Path(__file__).with_name("expectations_driver.c"),
    ]
    subprocess.run([compiler, *flags, "-I", source, *files, "-pthread", "-lm", "-o", driver], check=True)
    count = write_cases(folder / "cases")
    done = subprocess.run([*through, driver, folder / "cases"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{count} bytecodes")


@built
@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """The C code alone, both types, under the address and undefined-behaviour sanitizers."""
    drive(tmp_path, gcc(), SANITIZERS)


@built
@pytest.mark.slow
def test_arm_under_emulation(tmp_path: Path) -> None:
    """The C code alone on NEON: cross-compiled, run by qemu's user mode."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs aarch64-linux-gnu-gcc and qemu-aarch64 (Debian: gcc-aarch64-linux-gnu, qemu-user)")
    flags = ["-O3", "-std=gnu11", "-w", "-DVARIANT=baseline", "-fno-tree-vectorize", "-ffp-contract=fast", "-static"]
    drive(tmp_path, compiler, flags, emulator)


@built
def test_a_forked_process_runs_on_several_threads_as_its_parent_did() -> None:
    """OpenMP's threads do not survive a fork: a child that called them would wait for ever."""
    program = """
import os, torch
from qpeft.circuits import ansatz
from qpeft.circuits.simulator.simulate import expectations
torch.set_num_threads(2)
circuit = ansatz.qtha(6, 2)
x, angles = torch.randn(4096, circuit.n_inputs), torch.randn(circuit.n_angles)
torch.mm(torch.randn(512, 512), torch.randn(512, 512))
wanted = expectations(circuit, x, angles)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(expectations(circuit, x, angles), wanted) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)

"""The simulator against published vectors, PennyLane, Qiskit, a plain numpy state vector, and itself by another route."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qpeft.circuits import ansatz
from qpeft.circuits.executor import Executor
from qpeft.circuits.ir import GATES, Angle, Circuit, Observable, Op
from qpeft.circuits.simulator import simulate
from qpeft.circuits.simulator.simulate import Simulator, expectations
from qpeft.circuits.simulator.torch_engine import compiler
from qpeft.circuits.simulator.torch_engine import expectations as torch_expectations
from qpeft.errors import CircuitError, ResourceError
from tests import reference

DOUBLE = torch.float64

# methods.md, section 1: an independent implementation of QTHA's circuit in float64
VECTORS = {
    (2, 1): [0.96760251, 0.36738528],
    (3, 2): [0.78682627, -0.71964828, -0.81452548],
    (4, 4): [0.65986947, 0.15531571, 0.29181923, -0.24382975],
    (5, 3): [0.58261679, -0.34245991, 0.23338042, 0.14510394, 0.43029383],
}


def vector_angles(n: int, layers: int) -> Tensor:
    m = torch.arange(n * layers, dtype=DOUBLE).reshape(layers, n) + 1
    return torch.stack([0.2 * m, 0.1 * m, 0.05 * m, -0.15 * m], dim=1).flatten()


def random_circuit(n: int, depth: int, seed: int, n_inputs: int = 2) -> Circuit:
    """Any gates of the table, angles from inputs, shared and repeated parameters, constants, scales and shifts."""
    rng = np.random.default_rng(seed)
    names = [name for name, spec in GATES.items() if spec.n_qubits <= n]
    ops, n_params = [], n_inputs + 5
    for _ in range(depth):
        spec = GATES[rng.choice(names)]
        qubits = tuple(int(q) for q in rng.choice(n, spec.n_qubits, replace=False))
        angle = None
        if spec.parametrised:
            index = None if rng.random() < 0.15 else int(rng.integers(n_params))
            angle = Angle(index, float(rng.choice([1.0, -0.5, 2.0])), float(rng.choice([0.0, 0.3])))
        ops.append(Op(spec.name, qubits, angle))
    return Circuit(n, tuple(ops), n_inputs, n_params)


def random_observables(n: int, seed: int) -> tuple[Observable, ...]:
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("IXYZ"), n)) for _ in range(3)]
    mixed = Observable((*Observable.pauli(words[0], 0.5).terms, *Observable.pauli(words[1], -2.0).terms))
    return (*map(Observable.pauli, words), mixed, Observable.z(n - 1))


def case(n: int, depth: int, seed: int, batch: int = 3) -> tuple[Circuit, tuple[Observable, ...], Tensor, Tensor]:
    circuit = random_circuit(n, depth, seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, circuit.n_inputs, dtype=DOUBLE, generator=generator)
    angles = torch.randn(circuit.n_angles, dtype=DOUBLE, generator=generator)
    return circuit, random_observables(n, seed), inputs, angles


@pytest.mark.parametrize("shape", VECTORS)
def test_published_vectors(shape: tuple[int, int]) -> None:
    n, layers = shape
    u = torch.tensor((0.3, -1.1, 2.0, 0.7, -0.4)[:n], dtype=DOUBLE)
    out = expectations(ansatz.qtha(n, layers), u, vector_angles(n, layers))
    torch.testing.assert_close(out, torch.tensor(VECTORS[shape], dtype=DOUBLE), atol=5e-9, rtol=0)


def test_zero_angles_give_the_cosine_of_the_summed_inputs() -> None:
    for n, layers in ((3, 1), (4, 3), (7, 2)):
        circuit = ansatz.qtha(n, layers)
        u = torch.randn(5, n, dtype=DOUBLE)
        torch.testing.assert_close(expectations(circuit, u, torch.zeros(circuit.n_angles, dtype=DOUBLE)), torch.cos(layers * u))


@pytest.mark.parametrize(("n", "seed"), list(itertools.product((1, 2, 3, 5, 6, 7, 8), range(6))))
def test_random_circuits_equal_the_plain_state_vector(n: int, seed: int) -> None:
    circuit, observables, inputs, angles = case(n, 30, seed)
    out = expectations(circuit, inputs, angles, observables)
    for row, x in zip(out, inputs, strict=True):
        params = [*x.tolist(), *angles.tolist()]
        want = [reference.expectation(circuit, params, observable) for observable in observables]
        np.testing.assert_allclose(row.numpy(), want, atol=1e-12)


@pytest.mark.parametrize(("n", "layers"), [(2, 1), (4, 2), (6, 2), (8, 2), (10, 1), (12, 1)])
@pytest.mark.parametrize("make", [ansatz.qtha, ansatz.hardware_efficient])
def test_values_and_gradients_equal_pennylane(n: int, layers: int, make: object) -> None:
    qml = pytest.importorskip("pennylane")
    circuit: Circuit = make(n, layers)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(n)
    inputs = torch.randn(n, dtype=DOUBLE, generator=generator, requires_grad=True)
    angles = torch.randn(circuit.n_angles, dtype=DOUBLE, generator=generator, requires_grad=True)
    gates = {"ry": qml.RY, "rx": qml.RX, "rz": qml.RZ, "crz": qml.CRZ, "cx": qml.CNOT}

    @qml.qnode(qml.device("default.qubit", wires=n), interface="torch", diff_method="backprop")
    def node(params: Tensor) -> list[object]:
        for op in circuit.ops:
            if op.angle is None:
                gates[op.gate](wires=list(op.qubits))
            else:
                assert op.angle.index is not None
                gates[op.gate](params[op.angle.index], wires=list(op.qubits))
        return [qml.expval(qml.PauliZ(k)) for k in range(n)]

    theirs = torch.stack(node(torch.cat([inputs, angles])))
    ours = expectations(circuit, inputs, angles)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    weights = torch.randn(n, dtype=DOUBLE, generator=generator)
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), (inputs, angles)),
        torch.autograd.grad((theirs * weights).sum(), (inputs, angles)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)
    single = expectations(circuit, inputs.detach().float(), angles.detach().float())
    torch.testing.assert_close(single, theirs.detach().float(), atol=2e-5, rtol=2e-5)


def test_qiskit_agrees_with_its_qubits_in_the_other_order() -> None:
    pytest.importorskip("qiskit")
    from qiskit import QuantumCircuit
    from qiskit.quantum_info import SparsePauliOp, Statevector

    circuit = ansatz.qtha(5, 2)
    params = np.random.default_rng(0).normal(size=circuit.n_params)
    theirs = QuantumCircuit(5)
    for op in circuit.ops:
        assert op.angle is not None
        getattr(theirs, op.gate)(op.angle.value(params.tolist()), *op.qubits)
    state = Statevector(theirs)
    words = ["ZIIII", "IXYIZ", "YYIIX"]
    ours = expectations(
        circuit,
        torch.from_numpy(params[:5]),
        torch.from_numpy(params[5:]),
        [Observable.pauli(word) for word in words],
    )
    want = [state.expectation_value(SparsePauliOp(word[::-1])).real for word in words]  # Qiskit writes qubit 0 last
    np.testing.assert_allclose(ours.numpy(), want, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(0, 40), st.integers(0, 10**6))
def test_adjoint_gradients_equal_recorded_ones(n: int, depth: int, seed: int) -> None:
    circuit, observables, inputs, angles = case(n, depth, seed)
    inputs.requires_grad_()
    angles.requires_grad_()
    weights = torch.randn(3, len(observables), dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))

    def gradients(method: simulate.Gradient) -> tuple[Tensor, ...]:
        out = expectations(circuit, inputs, angles, observables, gradient=method)
        used = 0 * (inputs.sum() + angles.sum())  # a circuit may use neither, and recording then has nothing to record
        return torch.autograd.grad((out * weights).sum() + used, (inputs, angles))

    grads = [gradients("adjoint"), gradients("autograd")]
    for ours, recorded in zip(*grads, strict=True):
        torch.testing.assert_close(ours, recorded, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("n", [2, 4, 7])
def test_gradcheck(n: int) -> None:
    circuit, observables, inputs, angles = case(n, 25, 11 + n)
    arguments = (inputs.requires_grad_(), angles.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, a: expectations(circuit, x, a, observables), arguments)


def test_second_derivatives_through_the_recorded_route() -> None:
    circuit = ansatz.qtha(2, 1)
    run = Simulator("autograd").compile(circuit)
    arguments = (
        torch.randn(2, 2, dtype=DOUBLE, requires_grad=True),
        torch.randn(circuit.n_angles, dtype=DOUBLE, requires_grad=True),
    )
    assert torch.autograd.gradgradcheck(run, arguments)


@pytest.mark.parametrize(("n", "batch"), [(7, 23), (7, 21), (8, 21), (11, 5)])  # 3 samples are left for the last chunk, or 1
def test_chunks_change_nothing(n: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit, observables, inputs, angles = case(n, 30, 5, batch=batch)
    inputs.requires_grad_()
    angles.requires_grad_()

    def both() -> tuple[Tensor, ...]:
        out = expectations(circuit, inputs, angles, observables)
        return (out, *torch.autograd.grad(out.square().sum(), (inputs, angles)))

    whole = both()
    monkeypatch.setattr(torch_expectations, "CPU_CHUNK_BYTES", 2 * 2**n * 8 * 4)  # four samples a chunk
    for a, b in zip(whole, both(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("circuit", [ansatz.hardware_efficient(8, 2), ansatz.qtha(8, 8)], ids=["hardware_efficient", "qtha"])
def test_backward_memory(circuit: Circuit, choose_kernel: Callable[[str], None]) -> None:
    """Bytes allocated at once in the backward pass of 2,048 samples, without the kernel: below 8 MiB, gradients included."""
    choose_kernel("off")
    arguments = torch.randn(2048, 8, requires_grad=True), torch.randn(circuit.n_angles, requires_grad=True)
    torch.autograd.grad(expectations(circuit, *arguments).sum(), arguments)  # what is made once
    loss = expectations(circuit, *arguments).sum()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        torch.autograd.grad(loss, arguments)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = list(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    assert 2**19 < max(held) < 2**23


def test_shapes_and_empty_batches() -> None:
    circuit = ansatz.qtha(3, 1)
    angles = torch.randn(circuit.n_angles)
    assert expectations(circuit, torch.randn(3), angles).shape == (3,)
    assert expectations(circuit, torch.randn(2, 5, 3), angles).shape == (2, 5, 3)
    empty = torch.randn(0, 3, requires_grad=True)
    out = expectations(circuit, empty, angles.requires_grad_())
    out.sum().backward()
    assert out.shape == (0, 3)
    assert not angles.grad.any()  # type: ignore[union-attr]


def test_circuits_without_inputs_angles_or_gates() -> None:
    bell = Circuit(2, (Op("h", (0,)), Op("cx", (0, 1))))
    out = expectations(
        bell, torch.zeros(4, 0), torch.zeros(0), [Observable.pauli("ZZ"), Observable.pauli("XX"), Observable.pauli("ZI")]
    )
    torch.testing.assert_close(out, torch.tensor([[1.0, 1.0, 0.0]] * 4))
    torch.testing.assert_close(expectations(Circuit(3, ()), torch.zeros(1, 0), torch.zeros(0)), torch.ones(1, 3))
    identity = expectations(Circuit(1, (Op("x", (0,)),)), torch.zeros(1, 0), torch.zeros(0), [Observable(((3.0, ()),))])
    torch.testing.assert_close(identity, torch.tensor([[3.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    circuit = ansatz.qtha(4, 2)
    inputs, angles = torch.randn(6, 4).to(dtype), torch.randn(circuit.n_angles).to(dtype)
    out = expectations(circuit, inputs, angles)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expectations(circuit, inputs.float(), angles.float()))


@pytest.mark.parametrize("n", [4, 8])
@pytest.mark.parametrize("gradient", ["adjoint", "autograd"])
def test_autocast_leaves_the_circuit_in_float32(n: int, gradient: str) -> None:
    circuit = ansatz.qtha(n, 2)
    inputs, angles = torch.randn(6, n, requires_grad=True), torch.randn(circuit.n_angles, requires_grad=True)
    run = Simulator(gradient).compile(circuit)  # type: ignore[arg-type]
    plain = run(inputs, angles)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run(inputs, angles)
    grads = torch.autograd.grad(cast.sum(), (inputs, angles))
    assert torch.equal(plain, cast)
    assert {g.dtype for g in grads} == {torch.float32}
    for a, b in zip(grads, torch.autograd.grad(plain.sum(), (inputs, angles)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_torch_compile_takes_it_whole() -> None:
    circuit = ansatz.qtha(4, 2)
    run = Simulator().compile(circuit)
    matrix = torch.randn(4, 4)

    def model(x: Tensor, angles: Tensor) -> Tensor:
        return run(x @ matrix, angles).sin().sum()

    inputs, angles = torch.randn(6, 4, requires_grad=True), torch.randn(circuit.n_angles, requires_grad=True)
    eager = torch.autograd.grad(model(inputs, angles), (inputs, angles))
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(inputs, angles), model(inputs, angles))
    for a, b in zip(torch.autograd.grad(compiled(inputs, angles), (inputs, angles)), eager, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.15, of its own check
def test_operator_passes_torch_library_checks() -> None:
    circuit = ansatz.qtha(3, 1)
    key = compiler.compile_circuit(circuit, None).key
    arguments = (torch.randn(4, 3, requires_grad=True), torch.randn(circuit.n_angles, requires_grad=True), key)
    torch.library.opcheck(torch.ops.qpeft.expectations.default, arguments)


def test_vmap_and_functional_gradients() -> None:
    circuit = ansatz.qtha(3, 1)
    run = Simulator().compile(circuit)
    inputs, angles = torch.randn(5, 2, 3, dtype=DOUBLE), torch.randn(5, circuit.n_angles, dtype=DOUBLE)
    torch.testing.assert_close(torch.vmap(run, (0, None))(inputs, angles[0]), run(inputs, angles[0]))
    each = torch.stack([run(x, a) for x, a in zip(inputs, angles, strict=True)])
    torch.testing.assert_close(torch.vmap(run)(inputs, angles), each)
    torch.testing.assert_close(torch.vmap(run, (None, 0))(inputs[0], angles), torch.stack([run(inputs[0], a) for a in angles]))
    recorded = Simulator("autograd").compile(circuit)
    functional = torch.func.grad(lambda a: recorded(inputs[0], a).sum())(angles[0])
    leaf = angles[0].clone().requires_grad_()
    torch.testing.assert_close(functional, torch.autograd.grad(run(inputs[0], leaf).sum(), leaf)[0])


def test_backward_keeps_inputs_and_angles_alone() -> None:
    circuit = ansatz.qtha(8, 4)
    inputs, angles = torch.randn(64, 8, requires_grad=True), torch.randn(circuit.n_angles, requires_grad=True)
    kept: list[int] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        expectations(circuit, inputs, angles)
    assert sum(kept) == inputs.numel() + angles.numel()


def test_a_state_too_large_is_refused_with_the_figure() -> None:
    circuit = Circuit(44, (Op("h", (0,)),))
    with pytest.raises(
        ResourceError, match=r"44-qubit circuit needs [\d,]+\.\d\d GiB of memory, [\d,.]+ GiB are available"
    ) as caught:
        expectations(circuit, torch.zeros(1, 0), torch.zeros(0))
    assert isinstance(caught.value.value, int)
    assert caught.value.value > 2 * 4 * 2**44


@pytest.mark.parametrize(
    ("inputs", "angles", "observables", "words"),
    [
        (torch.zeros(2, 4), torch.zeros(12), None, "inputs have the wrong shape"),
        (torch.zeros(()), torch.zeros(12), None, "inputs have the wrong shape"),
        (torch.zeros(2, 3), torch.zeros(11), None, "angles have the wrong shape"),
        (torch.zeros(2, 3), torch.zeros(12), [Observable.z(3)], "a qubit that is not there"),
        (torch.zeros(2, 3), torch.zeros(12), [], "at least one observable"),
    ],
)
def test_wrong_arguments_say_what_was_wrong(inputs: Tensor, angles: Tensor, observables: object, words: str) -> None:
    with pytest.raises(CircuitError, match=words):
        expectations(ansatz.qtha(3, 1), inputs, angles, observables)  # type: ignore[arg-type]


def test_simulator_is_an_executor_that_copies_and_pickles() -> None:
    assert isinstance(Simulator(), Executor)
    with pytest.raises(CircuitError, match="unknown gradient method"):
        Simulator("finite")  # type: ignore[arg-type]
    run = Simulator().compile(ansatz.qtha(3, 1))
    inputs, angles = torch.randn(2, 3), torch.randn(12)
    for twin in (copy.deepcopy(run), pickle.loads(pickle.dumps(run))):
        assert torch.equal(twin(inputs, angles), run(inputs, angles))


def test_blocks_do_not_depend_on_where_dense_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same circuit through dense blocks, and through Kronecker blocks of 2, 3 and 4 qubits."""
    for n in (5, 6):
        circuit, observables, inputs, angles = case(n, 40, 100 + n)
        inputs.requires_grad_()
        angles.requires_grad_()
        results = []
        for dense, size in ((6, 4), (0, 2), (0, 3), (0, 4)):
            monkeypatch.setattr(compiler, "DENSE_QUBITS", dense)
            monkeypatch.setattr(compiler, "BLOCK_QUBITS", size)
            compiler.compile_circuit.cache_clear()
            compiler.compiled_from_key.cache_clear()
            out = expectations(circuit, inputs, angles, observables)
            results.append((out, *torch.autograd.grad(out.square().sum(), (inputs, angles))))
        compiler.compile_circuit.cache_clear()
        compiler.compiled_from_key.cache_clear()
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)


def test_angles_wrap_around() -> None:
    """Expectation values have period 4 pi in a controlled rotation's angle and 2 pi in a rotation's."""
    circuit = ansatz.qtha(3, 1)
    inputs, angles = torch.randn(4, 3, dtype=DOUBLE), torch.randn(12, dtype=DOUBLE)
    torch.testing.assert_close(expectations(circuit, inputs + 2 * math.pi, angles), expectations(circuit, inputs, angles))
    torch.testing.assert_close(expectations(circuit, inputs, angles + 4 * math.pi), expectations(circuit, inputs, angles))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
@pytest.mark.parametrize("kernel", ["", "off"])
def test_vjp_equals_autograd(choose_kernel: Callable[[str], None], kernel: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    choose_kernel(kernel)
    circuit = ansatz.qtha(3, 2)
    observables = (Observable.pauli("XZI"), Observable.z(2))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(*shape, 3, dtype=dtype, generator=generator, requires_grad=True)
    angles = torch.randn(circuit.n_angles, dtype=dtype, generator=generator, requires_grad=True)
    grad = torch.randn(*shape, 2, dtype=dtype, generator=generator)
    values = Simulator().compile(circuit, observables)(inputs, angles)
    found = simulate.vjp(circuit, observables)(inputs, angles, grad)
    assert not any(tensor.requires_grad for tensor in found)
    for one, other in zip(found, (values, *torch.autograd.grad(values, (inputs, angles), grad)), strict=True):
        torch.testing.assert_close(one, other.detach())
    with pytest.raises(CircuitError, match="the gradient has the wrong shape"):
        simulate.vjp(circuit, observables)(inputs, angles, grad[..., :1])

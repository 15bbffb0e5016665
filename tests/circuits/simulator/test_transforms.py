"""Every transform of torch around a circuit is right or refused: derivatives against PennyLane and finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor
from torch.autograd import forward_ad

from qpeft.circuits import ansatz
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.circuits.simulator.simulate import Gradient, Simulator, expectations
from qpeft.circuits.simulator.statevector import columns
from qpeft.circuits.surrogate.executor import SurrogateExecutor
from qpeft.errors import CircuitError
from tests.foreign import pennylane_gate

DOUBLE = torch.float64
CIRCUIT = ansatz.qtha(3, 2)
RUN = Simulator().compile(CIRCUIT)
REAL = ansatz.simplified_two_design(3, 2)  # its columns are the compiled kernel's
COMPLEX = Circuit(2, (Op("rx", (0,), Angle(0)), Op("crz", (0, 1), Angle(1, 2.0)), Op("ryy", (0, 1), Angle(0))), n_params=2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


INPUTS, ANGLES = normal(4, 3), normal(CIRCUIT.n_angles, seed=1)


def total(inputs: Tensor, angles: Tensor) -> Tensor:
    """A number whose second derivatives are not trivial."""
    return RUN(inputs, angles).square().sum()


def by_pennylane(inputs: Tensor, angles: Tensor) -> Tensor:
    """Expectation values `(B, 3)` by PennyLane's own simulator, differentiable by torch to any order."""
    qml = pytest.importorskip("pennylane")

    @qml.qnode(qml.device("default.qubit", wires=3), interface="torch", diff_method="backprop")
    def node(params: Tensor) -> list[object]:
        for op in CIRCUIT.ops:
            assert op.angle is not None
            assert op.angle.index is not None
            pennylane_gate(op.gate, params[op.angle.index], op.qubits)
        return [qml.expval(qml.PauliZ(k)) for k in range(3)]

    return torch.stack([torch.stack(node(torch.cat([row, angles]))) for row in inputs])


@pytest.fixture(scope="module")
def jacobians() -> tuple[Tensor, Tensor]:
    """PennyLane's: values `(4, 3)` by inputs `(4, 3)`, and by angles."""
    found = torch.autograd.functional.jacobian(by_pennylane, (INPUTS, ANGLES))
    return found[0], found[1]


@pytest.fixture(scope="module")
def hessian() -> Tensor:
    """PennyLane's second derivatives of `total` in the angles."""
    return torch.autograd.functional.hessian(lambda a: by_pennylane(INPUTS, a).square().sum(), ANGLES)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernel", ["", "off"])
def test_jacobians_in_both_modes(jacobians: tuple[Tensor, Tensor], kernel: str, choose_kernel: Callable[[str], None]) -> None:
    choose_kernel(kernel)
    for transform in (torch.func.jacfwd, torch.func.jacrev):
        for found, wanted in zip(transform(RUN, (0, 1))(INPUTS, ANGLES), jacobians, strict=True):
            close(found, wanted)


def test_directional_derivatives(jacobians: tuple[Tensor, Tensor]) -> None:
    tangents = normal(4, 3, seed=2), normal(CIRCUIT.n_angles, seed=3)
    by_inputs = torch.einsum("bkcl,cl->bk", jacobians[0], tangents[0])
    by_angles = jacobians[1] @ tangents[1]
    values, found = torch.func.jvp(RUN, (INPUTS, ANGLES), tangents)
    close(values, RUN(INPUTS, ANGLES))
    close(found, by_inputs + by_angles)
    with forward_ad.dual_level():
        out = RUN(INPUTS, forward_ad.make_dual(ANGLES, tangents[1]))
        close(forward_ad.unpack_dual(out).tangent, by_angles)


def test_second_derivatives(hessian: Tensor) -> None:
    close(torch.func.hessian(lambda a: total(INPUTS, a))(ANGLES), hessian)
    leaf = ANGLES.clone().requires_grad_()
    (first,) = torch.autograd.grad(total(INPUTS, leaf), leaf, create_graph=True)  # only the angles need a gradient
    close(torch.autograd.grad(first @ torch.ones_like(first), leaf)[0], hessian.sum(0))
    both = torch.stack([ANGLES, ANGLES]).requires_grad_()
    (first,) = torch.autograd.grad(torch.vmap(total, (None, 0))(INPUTS, both).sum(), both, create_graph=True)
    close(torch.autograd.grad(first.sum(), both)[0][1], hessian.sum(0))


def test_gradcheck_in_every_mode() -> None:
    arguments = INPUTS[:2].clone().requires_grad_(), ANGLES.clone().requires_grad_()
    assert torch.autograd.gradcheck(RUN, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(RUN, arguments)
    assert torch.autograd.gradgradcheck(lambda a: RUN(INPUTS[:2], a), arguments[1:])
    assert torch.autograd.gradgradcheck(lambda x: RUN(x, ANGLES), arguments[:1])


@pytest.mark.parametrize("circuit", [REAL, COMPLEX], ids=["real", "complex"])
def test_columns_in_every_mode(circuit: Circuit) -> None:
    angles = normal(circuit.n_angles, seed=4).requires_grad_()

    def run(a: Tensor) -> Tensor:
        return torch.stack(columns(circuit, a, 3))

    assert torch.autograd.gradcheck(run, angles, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, angles)
    found = torch.func.jacfwd(run)(angles.detach())
    close(found, torch.autograd.functional.jacobian(run, angles.detach()))
    several = torch.stack([angles.detach(), -angles.detach()])
    close(torch.vmap(run)(several), torch.stack([run(a) for a in several]))


def test_vmap_over_parameters_and_samples(jacobians: tuple[Tensor, Tensor]) -> None:
    several = torch.stack([ANGLES, 2 * ANGLES])
    each = torch.stack([RUN(INPUTS, a) for a in several])
    close(torch.vmap(RUN, (None, 0))(INPUTS, several), each)
    close(torch.vmap(torch.vmap(RUN, (0, None)), (None, 0))(INPUTS, several), each)
    per_sample = torch.vmap(torch.func.grad(lambda a, x: RUN(x, a).sum()), (None, 0))(ANGLES, INPUTS)
    close(per_sample, jacobians[1].sum(1))
    leaf = several.clone().requires_grad_()
    torch.vmap(RUN, (None, 0))(INPUTS, leaf).sum().backward()
    assert leaf.grad is not None
    close(leaf.grad[0], jacobians[1].sum((0, 1)))


@pytest.mark.parametrize("gradient", ["adjoint", "autograd"])
def test_no_sample(gradient: Gradient) -> None:
    def run(angles: Tensor) -> Tensor:
        return expectations(CIRCUIT, INPUTS[:0], angles, gradient=gradient)

    assert torch.func.jacfwd(run)(ANGLES).shape == (0, CIRCUIT.n_qubits, CIRCUIT.n_angles)
    leaf = ANGLES.clone().requires_grad_()
    run(leaf).sum().backward()
    assert leaf.grad is not None
    close(leaf.grad, torch.zeros_like(ANGLES))


def test_inference_mode() -> None:
    with torch.inference_mode():
        found = RUN(INPUTS.clone(), ANGLES.clone())
        re, _ = columns(REAL, normal(REAL.n_angles), 2)
    close(found.clone(), RUN(INPUTS, ANGLES))
    close(re.clone(), columns(REAL, normal(REAL.n_angles), 2)[0])


@pytest.mark.parametrize("kernel", ["", "off"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_sample_left_out_of_the_loss_spoils_no_gradient(
    kernel: str, dtype: torch.dtype, bad: float, choose_kernel: Callable[[str], None]
) -> None:
    choose_kernel(kernel)
    inputs, angles = normal(40, 3).to(dtype), ANGLES.clone().to(dtype).requires_grad_()
    inputs[7, 1] = inputs[20, 0] = bad
    used = torch.ones(40, dtype=torch.bool)
    used[7] = used[20] = False
    (wanted,) = torch.autograd.grad(RUN(inputs[used], angles).sum(), angles)
    leaf = inputs.requires_grad_()
    out = RUN(leaf, angles)
    by_inputs, by_angles = torch.autograd.grad(torch.where(used[:, None], out, 0).sum(), (leaf, angles), create_graph=False)
    torch.testing.assert_close(by_angles, wanted, rtol=1e-4, atol=1e-5 if dtype is torch.float32 else 1e-12)
    assert not by_inputs[~used].any()
    (again,) = torch.autograd.grad(RUN(leaf, angles)[used].sum(), angles, create_graph=True)
    torch.testing.assert_close(again, wanted, rtol=1e-4, atol=1e-5 if dtype is torch.float32 else 1e-12)


@pytest.mark.parametrize("kernel", ["", "off"])
def test_a_sample_left_out_of_a_small_batch_spoils_no_gradient(kernel: str, choose_kernel: Callable[[str], None]) -> None:
    """An angle that two gates share, and fewer samples than the kernel takes at once."""
    choose_kernel(kernel)
    ops = (Op("ry", (0,), Angle(0)), Op("rx", (1,), Angle(1)), Op("crx", (0, 1), Angle(2)), Op("ry", (0,), Angle(2, 0.5, 0.3)))
    run, angles = Simulator().compile(Circuit(2, ops, n_inputs=2, n_params=3)), normal(1).requires_grad_()
    inputs = normal(3, 2)
    (wanted,) = torch.autograd.grad(run(inputs[[0, 2]], angles).sum(), angles)
    inputs[1] = torch.inf
    (found,) = torch.autograd.grad(run(inputs, angles)[[0, 2]].sum(), angles)
    close(found, wanted)


def test_meta_tensors_have_the_shapes() -> None:
    angles = ANGLES.to("meta").requires_grad_()
    out = RUN(INPUTS.to("meta"), angles)
    assert (out.shape, out.device.type, out.dtype) == ((4, 3), "meta", DOUBLE)
    out.sum().backward()
    assert angles.grad is not None
    assert angles.grad.shape == ANGLES.shape
    assert columns(REAL, torch.empty(REAL.n_angles, device="meta"), 2)[0].shape == (8, 2)
    with pytest.raises(CircuitError, match="hold no numbers"):
        RUN(INPUTS, ANGLES.to("meta"))


def test_views_are_read_as_what_they_stand_for() -> None:
    """Strides, and signs that a view of a conjugate leaves pending."""
    negated_inputs = torch.complex(torch.zeros_like(INPUTS), INPUTS).conj().imag
    negated_angles = torch.complex(torch.zeros_like(ANGLES), ANGLES).conj().imag
    assert negated_inputs.is_neg()
    close(RUN(negated_inputs, negated_angles), RUN(-INPUTS, -ANGLES))
    strided = INPUTS.T.contiguous().T, ANGLES.repeat_interleave(2)[::2]
    close(RUN(*strided), RUN(INPUTS, ANGLES))
    close(RUN(INPUTS[:1].expand(4, 3), ANGLES), RUN(INPUTS[:1].repeat(4, 1), ANGLES))
    real = normal(REAL.n_angles)
    negated = torch.complex(torch.zeros_like(real), real).conj().imag
    close(columns(REAL, negated, 2)[0], columns(REAL, -real, 2)[0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused() -> None:
    with pytest.raises(CircuitError, match="inputs must be one tensor"):
        RUN(torch.nested.nested_tensor([INPUTS, INPUTS[:1]]), ANGLES)


class Named(Tensor):
    """A subclass that changes nothing about the numbers."""


def test_subclasses_of_ordinary_tensors() -> None:
    close(RUN(INPUTS.as_subclass(Named), ANGLES.as_subclass(Named)).as_subclass(Tensor), RUN(INPUTS, ANGLES))


@pytest.mark.parametrize(
    ("inputs", "angles", "message"),
    [
        (INPUTS.numpy(), ANGLES, r"inputs must be a torch tensor; got 'ndarray'; hint: torch\.as_tensor"),
        (INPUTS, ANGLES.tolist(), "angles must be a torch tensor; got 'list'"),
        (INPUTS + 1j, ANGLES, r"inputs must be real; got torch\.complex128"),
        (INPUTS, ANGLES.to(torch.complex64), "angles must be real"),
        (INPUTS.to_sparse(), ANGLES, r"inputs must be dense; got torch\.sparse_coo"),
        (torch.nested.nested_tensor([INPUTS, INPUTS], layout=torch.jagged), ANGLES, "inputs must be"),
    ],
    ids=["numpy", "list", "complex", "complex angles", "sparse", "nested"],
)
def test_other_arguments_are_refused(inputs: Tensor, angles: Tensor, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        RUN(inputs, angles)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_distributed_tensors_are_refused(one_process: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    sharded = distribute_tensor(ANGLES, mesh, [Shard(0)])
    for inputs, angles in (
        (INPUTS, sharded),
        (INPUTS, torch.nn.Parameter(sharded)),
        (distribute_tensor(INPUTS, mesh, [Shard(0)]), ANGLES),
    ):
        with pytest.raises(CircuitError, match=r"must be a plain tensor; got 'DTensor'.*full_tensor"):
            RUN(inputs, angles)
    with pytest.raises(CircuitError, match=r"angles must be a plain tensor"):
        columns(REAL, distribute_tensor(normal(REAL.n_angles), mesh, [Shard(0)]), 2)
    close(RUN(INPUTS, sharded.full_tensor()), RUN(INPUTS, ANGLES))


def test_a_surrogate_refuses_what_it_cannot_differentiate() -> None:
    circuit = ansatz.qtha(2, 1)
    run, inputs, angles = SurrogateExecutor(Simulator()).compile(circuit), normal(3, 2), normal(circuit.n_angles)
    for transform in (torch.func.grad, torch.func.jacfwd):
        with pytest.raises(CircuitError, match="backward mode only"):
            transform(lambda a: run(inputs, a).sum())(angles)
    with pytest.raises(CircuitError, match="backward mode only"):
        torch.vmap(run, (0, None))(inputs, angles)
    np.testing.assert_allclose(run(inputs, angles), Simulator().compile(circuit)(inputs, angles), atol=1e-12)

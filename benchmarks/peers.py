"""The same circuit in other libraries, each as a torch user would write it.

A peer is a function `make(circuit, batch)` that returns a step `(inputs, angles, weights) -> (values, grad_inputs, grad_angles)`:
values `(batch, n)` of `<Z_k>`, and the gradient of `sum(weights * values)`; arguments and results are torch tensors. A library
that is missing or cannot run here raises `Unavailable` with the reason.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from qpeft.circuits.ir import Circuit, Op
from qpeft.circuits.simulator import simulate
from qpeft.circuits.simulator.simulate import Simulator

Step: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Unavailable(Exception):
    """A peer that cannot run here, and why."""


def _torch_step(values: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """A step from a function of leaf tensors that autograd differentiates."""

    def step(inputs: Tensor, angles: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, a = inputs.detach().requires_grad_(), angles.detach().requires_grad_()
        out = values(x, a)
        torch.autograd.backward(out, weights.to(out.dtype))
        assert x.grad is not None
        assert a.grad is not None
        return out.detach(), x.grad, a.grad

    return step


def _parameter(op: Op) -> int:
    """The index of an op's parameter; the benchmark's circuits have no scales, shifts or constants."""
    assert op.angle is not None
    assert op.angle.index is not None
    assert (op.angle.scale, op.angle.shift) == (1.0, 0.0)
    return op.angle.index


def ours(circuit: Circuit, batch: int) -> Step:
    """qpeft as it comes: the compiled kernel where there is one."""
    return _torch_step(Simulator().compile(circuit))


def ours_in_one_call(circuit: Circuit, batch: int) -> Step:
    """qpeft's values and gradients in one call without autograd's record, as the JAX program has it."""
    return simulate.vjp(circuit)


def ours_in_torch(circuit: Circuit, batch: int) -> Step:
    """qpeft where there is no compiled kernel."""
    from qpeft.circuits.simulator.c_engine import library

    step, chosen = ours(circuit, batch), library._choice

    def without(inputs: Tensor, angles: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        library._choice = lambda: (None, "not asked for")  # type: ignore[assignment]
        try:
            return step(inputs, angles, weights)
        finally:
            library._choice = chosen

    return without


def pennylane_backprop(circuit: Circuit, batch: int) -> Step:
    """default.qubit, torch interface, backpropagation, one broadcast call for the batch."""
    try:
        import pennylane as qml
    except ImportError as error:
        raise Unavailable(f"not installed: {error}") from error
    gates = {"rx": qml.RX, "ry": qml.RY, "rz": qml.RZ, "crz": qml.CRZ, "cx": qml.CNOT}
    n = circuit.n_qubits

    @qml.qnode(qml.device("default.qubit", wires=n), interface="torch", diff_method="backprop")
    def node(inputs: Tensor, angles: Tensor) -> list[object]:
        for op in circuit.ops:
            if op.angle is None:
                gates[op.gate](wires=list(op.qubits))
            else:
                index = _parameter(op)
                value = inputs[:, index] if index < circuit.n_inputs else angles[index - circuit.n_inputs]
                gates[op.gate](value, wires=list(op.qubits))
        return [qml.expval(qml.PauliZ(k)) for k in range(n)]

    return _torch_step(lambda inputs, angles: torch.stack(node(inputs, angles), dim=-1))


def lightning_adjoint(circuit: Circuit, batch: int) -> Step:
    """PennyLane's lightning.qubit in complex64 with adjoint differentiation, for one sample."""
    try:
        import pennylane as qml

        device = qml.device("lightning.qubit", wires=circuit.n_qubits, c_dtype=np.complex64)
    except Exception as error:
        raise Unavailable(f"not installed: {error}") from error
    if batch != 1:
        raise Unavailable("no batches with adjoint differentiation")
    gates = {"rx": qml.RX, "ry": qml.RY, "rz": qml.RZ, "crz": qml.CRZ, "cx": qml.CNOT}

    # One observable, the weighted sum: the adjoint method's cost grows with the number of observables
    @qml.qnode(device, interface="torch", diff_method="adjoint")
    def node(params: Tensor, weights: Tensor) -> object:
        for op in circuit.ops:
            gates[op.gate](*([] if op.angle is None else [params[_parameter(op)]]), wires=list(op.qubits))
        words = [qml.PauliZ(k) for k in range(circuit.n_qubits)]
        return qml.expval(qml.Hamiltonian(weights.tolist(), words))

    def step(inputs: Tensor, angles: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, a = inputs.detach().requires_grad_(), angles.detach().requires_grad_()
        out = node(torch.cat([x[0], a]), weights[0])
        out.backward()
        assert x.grad is not None
        assert a.grad is not None
        return out.detach(), x.grad, a.grad

    return step


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for modules that a library imports without needing them for what is measured."""

    def __init__(self, *roots: str) -> None:
        self.roots = roots

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if any(name == root or name.startswith(root + ".") for root in self.roots):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)

        def attribute(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module.__getattr__ = attribute  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def torchquantum(circuit: Circuit, batch: int) -> Step:
    """TorchQuantum, complex64. Its bridge to Qiskit, its data sets and its demos need old packages and are left out."""
    absent = _Absent(
        "torchvision",
        "qiskit_ibm_runtime",
        "qiskit.providers",
        *(f"torchquantum.{part}" for part in ("plugin", "pulse", "noise_model", "dataset", "algorithm")),
    )
    sys.meta_path.insert(0, absent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchquantum as tq
            import torchquantum.functional as tqf
    except Exception as error:
        raise Unavailable(f"cannot be imported: {error!r}") from error
    finally:
        sys.meta_path.remove(absent)
    gates = {"rx": tqf.rx, "ry": tqf.ry, "rz": tqf.rz, "crz": tqf.crz, "cx": tqf.cnot}
    measure = tq.MeasureAll(tq.PauliZ)

    def values(inputs: Tensor, angles: Tensor) -> Tensor:
        device = tq.QuantumDevice(n_wires=circuit.n_qubits, bsz=batch)
        for op in circuit.ops:
            if op.angle is None:
                gates[op.gate](device, wires=list(op.qubits))
            else:
                index = _parameter(op)
                value = inputs[:, index : index + 1] if index < circuit.n_inputs else angles[index - circuit.n_inputs].view(1, 1)
                gates[op.gate](device, wires=list(op.qubits), params=value)
        return measure(device)  # type: ignore[no-any-return]

    return _torch_step(values)


def deepquantum(circuit: Circuit, batch: int) -> Step:
    """DeepQuantum: inputs encoded, angles as parameters of its gates."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import deepquantum as dq
    except Exception as error:
        raise Unavailable(f"cannot be imported: {error!r}") from error
    built = dq.QubitCircuit(circuit.n_qubits)
    order = []
    for op in circuit.ops:
        call = {"rx": built.rx, "ry": built.ry, "rz": built.rz, "cx": built.cnot, "crz": built.crz}[op.gate]
        if op.angle is None:
            call(*op.qubits)
        elif circuit.is_input(op):
            call(*op.qubits, encode=True)
        else:
            call(*op.qubits)
            order.append(_parameter(op) - circuit.n_inputs)
    for k in range(circuit.n_qubits):
        built.observable(k)
    uploads = [_parameter(op) for op in circuit.ops if circuit.is_input(op)]
    parameters = list(built.parameters())

    def step(inputs: Tensor, angles: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = inputs.detach().requires_grad_()
        with torch.no_grad():
            for parameter, index in zip(parameters, order, strict=True):
                parameter.copy_(angles[index])
                parameter.grad = None
        built(data=x[:, uploads])
        out = built.expectation()
        out.backward(weights)
        grad = torch.zeros_like(angles)
        for parameter, index in zip(parameters, order, strict=True):
            grad[index] += parameter.grad.reshape(())
        assert x.grad is not None
        return out.detach(), x.grad, grad

    return step


def _tensorcircuit(circuit: Circuit, backend: str) -> tuple[Any, Callable[..., Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tensorcircuit as tc

            tc.set_backend(backend)
    except Exception as error:
        raise Unavailable(f"cannot be imported: {error!r}") from error

    def one(inputs: Any, angles: Any) -> Any:
        built = tc.Circuit(circuit.n_qubits)
        for op in circuit.ops:
            if op.angle is None:
                built.cnot(*op.qubits)
            else:
                index = _parameter(op)
                value = inputs[index] if index < circuit.n_inputs else angles[index - circuit.n_inputs]
                getattr(built, op.gate)(*op.qubits, theta=value)
        return tc.backend.stack([tc.backend.real(built.expectation_ps(z=[k])) for k in range(circuit.n_qubits)])

    own = tc.backend
    mapped = own.vmap(one, vectorized_argnums=0)

    def call(inputs: Any, angles: Any) -> Any:
        if tc.backend.name != own.name:  # the backend is global, and the other peer has set its own
            tc.set_backend(backend)
        return mapped(inputs, angles)

    return tc, call


def tensorcircuit_torch(circuit: Circuit, batch: int) -> Step:
    """TensorCircuit-NG on its PyTorch backend, mapped over the batch."""
    _, mapped = _tensorcircuit(circuit, "pytorch")
    return _torch_step(mapped)


def tensorcircuit_jax(circuit: Circuit, batch: int) -> Step:
    """TensorCircuit-NG compiled by JAX and called from torch through its interface, tensors shared by DLPack."""
    tc, mapped = _tensorcircuit(circuit, "jax")
    step = _torch_step(tc.interfaces.torch_interface(mapped, jit=True, enable_dlpack=True))

    def with_backend(inputs: Tensor, angles: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if tc.backend.name != "jax":
            tc.set_backend("jax")
        return step(inputs, angles, weights)

    return with_backend


def jax_by_hand(circuit: Circuit, batch: int) -> Step:
    """A state vector written for speed in JAX (benchmarks/jax_circuits.py), value and gradient in one compiled function."""
    try:
        import jax
    except ImportError as error:
        raise Unavailable(f"not installed: {error}") from error
    from benchmarks.jax_circuits import make_values

    try:
        values = make_values(circuit)
    except ValueError as error:
        raise Unavailable(f"written for the hardware-efficient circuit alone: {error}") from error

    @jax.jit
    def both(inputs: Any, angles: Any, weights: Any) -> Any:
        out, pull = jax.vjp(values, inputs, angles)
        return out, *pull(weights)

    arrays: dict[int, Any] = {}  # a JAX program holds JAX arrays: an argument is converted once, not in every step

    def array(tensor: Tensor) -> Any:
        known = arrays.get(tensor.data_ptr())
        if known is None:
            known = arrays[tensor.data_ptr()] = jax.device_put(tensor.detach().numpy().copy())
        return known

    def step(inputs: Tensor, angles: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        results = jax.block_until_ready(both(array(inputs), array(angles), array(weights)))
        out, grad_inputs, grad_angles = (torch.from_numpy(np.array(result)) for result in results)
        return out, grad_inputs, grad_angles

    return step


def pyvqnet(circuit: Circuit, batch: int) -> Step:
    """Origin's VQNet, its own autograd."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pyvqnet.qnn import vqc
            from pyvqnet.tensor import QTensor
    except Exception as error:
        raise Unavailable(f"cannot be imported: {error}") from error
    gates = {"rx": vqc.rx, "ry": vqc.ry, "rz": vqc.rz, "crz": vqc.crz, "cx": vqc.cnot}
    measure = vqc.MeasureAll(obs=[{"Z" + str(k): 1.0} for k in range(circuit.n_qubits)])

    def step(inputs: Tensor, angles: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, a = (QTensor(t.detach().numpy(), requires_grad=True) for t in (inputs, angles))
        machine = vqc.QMachine(circuit.n_qubits)
        machine.reset_states(batch)
        for op in circuit.ops:
            if op.angle is None:
                gates[op.gate](q_machine=machine, wires=list(op.qubits))
            else:
                index = _parameter(op)
                value = x[:, [index]] if index < circuit.n_inputs else a[[index - circuit.n_inputs]]
                gates[op.gate](q_machine=machine, wires=list(op.qubits), params=value)
        out = measure(q_machine=machine)
        out.backward(QTensor(weights.numpy()))
        results = (torch.from_numpy(np.asarray(t.to_numpy())) for t in (out, x.grad, a.grad))
        values, grad_inputs, grad_angles = results
        return values, grad_inputs, grad_angles

    return step


PEERS: dict[str, Callable[[Circuit, int], Step]] = {
    "ours": ours,
    "ours, one call": ours_in_one_call,
    "ours, torch only": ours_in_torch,
    "PennyLane backprop": pennylane_backprop,
    "TorchQuantum": torchquantum,
    "DeepQuantum": deepquantum,
    "TensorCircuit-NG (torch)": tensorcircuit_torch,
    "TensorCircuit-NG (JAX in torch)": tensorcircuit_jax,
    "pyvqnet": pyvqnet,
    "JAX by hand": jax_by_hand,
}

"""Adapters that qpeft trained, as plain PyTorch: this file needs torch, and safetensors to read the tensors from disk.

    model = AutoModelForCausalLM.from_pretrained("BASE")
    load(model, "FOLDER")          # the folder with adapter.json and adapter.safetensors

Each adapted layer computes `y = W x + b + delta(x)`. The kinds of delta, with tensors by name:

    lowrank    up (down x) (+ bias)
    matrix     weight x
    circuit    up v, v from u = down x: a classical part (core u, or u) joined with decode z(encode u), z the values of a circuit
    embedding  up z(down x), z_k = sum_b s_kb |(matrix h / |h|)_b|^2, s_kb = +-1 the sign of bit k of b

z is a trigonometric polynomial ("grid"), one for each light cone ("cones"), a tensor train ("chains"), a kernel regression
("kernels"), the circuit itself as a state vector ("gates"), a perceptron or a cosine.
"""

import json
import pathlib

import torch
from torch import nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """The delta of one layer. `spec` says its kind, the shapes of its tensors, and for a circuit what runs."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        for name, shape in spec["shapes"].items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=torch.float32), requires_grad=False))

    def forward(self, x):
        """`(..., d_in) -> (..., d_out)`, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            return getattr(self, "_" + self.spec["kind"])(x.float())

    def _lowrank(self, x):
        return F.linear(F.linear(x, self.down), self.up, getattr(self, "bias", None))

    def _matrix(self, x):
        return F.linear(x, self.weight)

    def _embedding(self, x):
        h = F.linear(x, self.down)
        h = h * torch.rsqrt(h.square().sum(-1, keepdim=True) + self.spec["tiny"])
        weights = F.linear(h, self.matrix).square()
        return F.linear(weights @ _signs(self.spec["qubits"], weights).T, self.up)

    def _circuit(self, x):
        spec = self.spec
        u = F.linear(x, self.down)
        classical = F.linear(u, self.core) if hasattr(self, "core") else u if spec["identity"] else None
        a = F.rms_norm(u, u.shape[-1:], eps=spec["normalize"]) if spec["normalize"] else u
        a = F.linear(a, self.encode) if hasattr(self, "encode") else a
        z = getattr(self, "_" + spec["qnn"]["kind"])(a.reshape(-1, a.shape[-1])).reshape(*a.shape[:-1], -1)
        z = F.linear(z, self.decode) if hasattr(self, "decode") else z
        if classical is None:
            v = z
        elif spec["join"] == "add":
            v = classical + z
        else:
            v = classical * (1 + z if spec["join"] == "weight" else z)
        return F.linear(v, self.up)

    def _cos(self, a):
        return a.cos()

    def _perceptron(self, a):
        for k in range(self.spec["qnn"]["layers"]):
            a = F.linear(F.silu(a) if k else a, getattr(self, f"layer{k}"))
        return a

    def _grid(self, a):
        return _polynomial(a, self.spec["qnn"]["base"], self.spec["qnn"]["sizes"], self.coefficients)

    def _cones(self, a):
        """A polynomial for each light cone, in its own inputs."""
        out, start = {}, 0
        for cone in self.spec["qnn"]["cones"]:
            count = len(cone["outputs"])
            for size in cone["sizes"]:
                count *= size
            own = self.coefficients[start : start + count]
            values = _polynomial(a[:, cone["inputs"]], cone["base"], cone["sizes"], own.reshape(-1, len(cone["outputs"])))
            out.update(zip(cone["outputs"], values.unbind(1), strict=True))
            start += count
        return torch.stack([out[k] for k in sorted(out)], 1)

    def _chains(self, a):
        """A product of matrices for each output, each linear in the waves of one input."""
        out, start = [], 0
        for chain in self.spec["qnn"]["chains"]:
            row = a.new_ones(len(a), 1)
            for q, base, (left, size, right) in zip(chain["inputs"], chain["base"], chain["cores"], strict=True):
                core = self.coefficients[start : start + left * size * right].reshape(left, size, right)
                row = torch.einsum("ba,bm,amc->bc", row, _waves(base * a[:, q], size), core)
                start += left * size * right
            out.append(row[:, 0])
        return torch.stack(out, 1)

    def _kernels(self, a):
        """`mean + sum_p weight_p exp(-sum_q (1 - cos w_q (a_q - a_pq)) / length^2)`."""
        qnn, out = self.spec["qnn"], {}
        for inputs, outputs in qnn["groups"]:
            scale = a.new_tensor([qnn["base"][q] for q in inputs])
            own, others = a[:, inputs] * scale, self.points[:, inputs] * scale
            likeness = own.cos() @ others.cos().T + own.sin() @ others.sin().T - len(inputs)
            for k in outputs:
                out[k] = (likeness / self.lengths[k] ** 2).exp() @ self.coefficients[:-1, k] + self.coefficients[-1, k]
        return torch.stack([out[k] for k in sorted(out)], 1)

    def _gates(self, a):
        """The circuit's gates, each `c + cos(t) d + sin(t) e` with t from one input, on a state vector; qubit 0 is leftmost."""
        qnn = self.spec["qnn"]
        n = qnn["qubits"]
        one, two = (torch.complex(*parts.unbind(2)) if len(parts) else parts for parts in (self.one, self.two))
        state = torch.zeros(len(a), 2**n, dtype=torch.complex64, device=a.device)
        state[:, 0] = 1
        state = state.reshape(-1, *(2,) * n)
        for qubits, place, source, frequency, phase in qnn["ops"]:
            matrices = (one, two)[len(qubits) - 1][place]
            if source is None:
                matrix = matrices[:1]
            else:
                t = (frequency * a[:, source] + phase)[:, None, None]
                matrix = matrices[0] + t.cos() * matrices[1] + t.sin() * matrices[2]
            state = _apply(state, matrix, qubits)
        return torch.stack([sum(c * _expectation(state, string) for c, string in terms) for terms in qnn["observables"]], 1)


def _waves(t, size):
    """`1, cos t, sin t, cos 2t, ..`, `(B, size)`."""
    return torch.stack([torch.ones_like(t), *(f(m * t) for m in range(1, size // 2 + 1) for f in (torch.cos, torch.sin))], 1)


def _polynomial(a, bases, sizes, coefficients):
    """`z_k = sum_m c[m, k] prod_q phi_{m_q}(w_q a_q)`, phi = 1, cos, sin, cos 2., sin 2., .."""
    out = None
    for q, (base, size) in enumerate(zip(bases, sizes, strict=True)):
        phi = _waves(base * a[:, q], size)
        out = phi @ coefficients.reshape(size, -1) if out is None else (phi[:, None] @ out.reshape(len(a), size, -1))[:, 0]
    return coefficients.expand(len(a), -1) if out is None else out


def _apply(state, matrix, qubits):
    axes, last = [q + 1 for q in qubits], list(range(-len(qubits), 0))
    moved = state.movedim(axes, last)
    return (moved.reshape(len(state), -1, 2 ** len(qubits)) @ matrix.mT).reshape(moved.shape).movedim(last, axes)


_PAULI = {"X": [[0, 1], [1, 0]], "Y": [[0, -1j], [1j, 0]], "Z": [[1, 0], [0, -1]]}


def _expectation(state, string):
    after = state
    for qubit, pauli in string:
        after = _apply(after, torch.tensor([_PAULI[pauli]], dtype=state.dtype, device=state.device), [qubit])
    return (state.conj() * after).real.flatten(1).sum(1)


def _signs(n, like):
    b = torch.arange(2**n, device=like.device)
    return torch.stack([1.0 - 2.0 * ((b >> (n - 1 - k)) & 1) for k in range(n)]).to(like.dtype)


class Adapted(nn.Module):
    """A linear layer with a delta."""

    def __init__(self, base_layer, spec):
        super().__init__()
        self.base_layer, self.qpeft_adapter = base_layer, Adapter(spec)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:  # such as weight, in_features
            return getattr(super().__getattr__("base_layer"), name)

    def forward(self, x, *args, **kwargs):
        """The layer's output, in its dtype."""
        y = self.base_layer(x, *args, **kwargs)
        return (y + self.qpeft_adapter(x)).to(y.dtype)


def attach(model, specs):
    """Put adapters, all zero, around the layers that `specs` names; `load` or a state dict fills them."""
    for name, spec in specs["modules"].items():
        parent, _, last = name.rpartition(".")
        qnn = spec.get("qnn")
        spec = {**spec, "qnn": specs["circuits"][qnn]} if isinstance(qnn, str) else spec
        adapted = Adapted(model.get_submodule(name), spec)
        like = next(adapted.base_layer.parameters())
        adapted.qpeft_adapter.to(like.device)
        setattr(model.get_submodule(parent), last, adapted)
    return model


def load(model, folder):
    """Put the adapters of a folder around a base model's layers."""
    from safetensors.torch import load_file

    folder = pathlib.Path(folder)
    specs = json.loads((folder / "adapter.json").read_text())
    attach(model, specs)
    tensors = load_file(str(folder / "adapter.safetensors"))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return model

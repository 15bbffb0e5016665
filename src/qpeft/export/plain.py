"""Export as plain PyTorch: tensors with a short file that applies them (qpeft_plain.py), and a model folder with remote code."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qpeft.adapters.base import Delta
from qpeft.adapters.controls import Cosine, Perceptron
from qpeft.adapters.layers.stored_surrogate import StoredSurrogate
from qpeft.adapters.low_rank import delta_weight, exact
from qpeft.adapters.methods.qaa import QAA, TINY
from qpeft.adapters.methods.qcore import QCore
from qpeft.adapters.methods.qtha import QTHA
from qpeft.adapters.peft.layer import DeltaLayer
from qpeft.adapters.quantum_layer import QuantumLayer
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.surrogate.executor import SurrogateExecutor, SurrogateFunction
from qpeft.circuits.surrogate.grid import FourierGrid
from qpeft.errors import AdapterError, CircuitError
from qpeft.export.models import AdaptedRun
from qpeft.training.loop.loaded_run import copy_sharing_weights

CODE, SPECS, TENSORS = "qpeft_plain.py", "adapter.json", "adapter.safetensors"
MODELING = "modeling_adapted.py"
MAX_GRID = 20_000  # numbers of a polynomial; circuits with more run as they are
_MODELING = '''"""{base} with an adapter that qpeft trained, as plain PyTorch. It needs torch and transformers alone."""

from transformers import {base}, {config}

from .qpeft_plain import attach


class AdaptedConfig({config}):
    """The base model's configuration; `qpeft` holds the adapters' shapes."""

    model_type = "qpeft_{model_type}"


class AdaptedForCausalLM({base}):
    """The base model with adapters around its layers."""

    config_class = AdaptedConfig

    def __init__(self, config):
        super().__init__(config)
        attach(self, config.qpeft)
        self._keep_in_fp32_modules_strict = ["qpeft_adapter"]
'''
Part = tuple[dict[str, Any], dict[str, Tensor]]  # a spec and its tensors


def export_plain(run: AdaptedRun, scratch: Path, whole: bool) -> tuple[Any, dict[str, Any]]:
    """(the exported model as it loads without qpeft, the report's part).

    Args:
        run: a finished run.
        scratch: the folder to write.
        whole: write a model folder with remote code; else tensors for the base model.

    Raises:
        AdapterError: an adapter that plain tensors cannot hold.
    """
    from safetensors.torch import save_file

    _check(run)
    specs: dict[str, Any] = {"modules": {}, "circuits": {}}
    tensors: dict[str, Tensor] = {}
    for name, layer in run.layers().items():
        spec, own = _of_layer(name, layer, run.adapter)
        if "qnn" in spec:  # equal circuits are written once
            text = json.dumps(spec["qnn"], sort_keys=True)
            known = {json.dumps(one, sort_keys=True): key for key, one in specs["circuits"].items()}
            key = known.get(text, f"circuit{len(known)}")
            specs["circuits"][key], spec["qnn"] = spec["qnn"], key
        specs["modules"][name] = {**spec, "shapes": {key: list(tensor.shape) for key, tensor in own.items()}}
        tensors |= {
            f"{name}.qpeft_adapter.{key}": tensor.detach().float().cpu().contiguous().clone() for key, tensor in own.items()
        }
    code = Path(__file__).with_name(CODE)
    shutil.copy(code, scratch / CODE)
    if whole:
        loaded = _write_model(run, scratch, specs, tensors)
    else:
        (scratch / SPECS).write_text(json.dumps(specs) + "\n", encoding="utf-8")
        save_file(tensors, str(scratch / TENSORS))
        loaded = _module(scratch / CODE).load(copy_sharing_weights(run.base), scratch).eval()
    kinds = Counter(spec["kind"] for spec in specs["modules"].values())
    return loaded, {"how": dict(kinds), "lossless": True, "parameters": sum(tensor.numel() for tensor in tensors.values())}


def _module(path: Path) -> Any:
    """A Python file as a module."""
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _check(run: AdaptedRun) -> None:
    if run.settings.modules_to_save or run.bias != "none":
        value = f"modules_to_save={run.settings.modules_to_save}, bias={run.bias}"
        raise AdapterError("plain tensors hold adapters of linear layers alone", value=value, hint="--to merged, or --to lora")


def _of_layer(name: str, layer: Any, adapter: str) -> Part:
    low = exact(layer, adapter)
    if low is not None:
        tensors = {"up": low.up, "down": low.down} | ({} if low.bias is None else {"bias": low.bias})
        return {"kind": "lowrank"}, tensors
    weight = delta_weight(layer, adapter)
    if weight is not None:
        return {"kind": "matrix"}, {"weight": weight}
    delta = layer.delta(adapter) if isinstance(layer, DeltaLayer) else None
    if isinstance(delta, QTHA):
        return _of_qtha(delta)
    if isinstance(delta, QCore):
        return _of_qcore(delta)
    if isinstance(delta, QAA):
        with torch.no_grad():
            matrix = delta.matrix()
        spec = {"kind": "embedding", "qubits": delta.up.in_features, "tiny": TINY}
        return spec, {"down": delta.down.weight, "matrix": matrix, "up": delta.scale * delta.up.weight}
    raise AdapterError("no plain form of this adapter", value=f"{name}: {type(delta or layer).__name__}", hint="--to lora")


@torch.no_grad()
def _of_qtha(delta: QTHA) -> Part:
    qnn, tensors = _of_qnn(delta, delta.shared[0] if delta.shared else delta.qnn)
    tensors |= {"down": delta.down(), "up": delta.up()}
    if delta.classical_map is not None:
        tensors["core"] = delta.classical_map.weight
    if delta.quantum_map is not None:
        tensors["decode"] = delta.quantum_map.weight
    join = "product" if delta.fusion == "multiply" else "add"
    return {"kind": "circuit", "identity": False, "normalize": 0.0, "join": join, "qnn": qnn}, tensors


@torch.no_grad()
def _of_qcore(delta: QCore) -> Part:
    qnn, tensors = _of_qnn(delta, delta.qnn)
    assert delta.encode is not None
    assert delta.decode is not None
    tensors |= {"down": delta.down, "up": delta.scale * delta.up, "encode": delta.encode.weight, "decode": delta.decode}
    if delta.core is not None:
        tensors["core"] = delta.core
    spec = {"kind": "circuit", "identity": delta.one_sided, "normalize": 1e-3 if delta.normalize else 0.0, "qnn": qnn}
    return {**spec, "join": "weight" if delta.fusion == "multiply" else "add"}, tensors


def _of_qnn(delta: Delta, qnn: Any) -> Part:
    """What stands in the circuit's place."""
    if isinstance(qnn, Cosine):
        return {"kind": "cos"}, {}
    if isinstance(qnn, Perceptron):
        weights = [layer.weight for layer in qnn.layers if isinstance(layer, torch.nn.Linear)]
        return {"kind": "perceptron", "layers": len(weights)}, {f"layer{k}": weight for k, weight in enumerate(weights)}
    if isinstance(qnn, StoredSurrogate):
        return _of_stored(qnn)
    if not isinstance(qnn, QuantumLayer):
        raise AdapterError("no plain form of this circuit", value=f"{type(delta).__name__}: {type(qnn).__name__}")
    try:
        grid = FourierGrid.of(qnn.circuit, qnn.observables)
    except CircuitError:
        grid = None
    if grid is None or grid.size * qnn.n_outputs > MAX_GRID:
        return _gates(qnn.circuit, qnn.angles.detach().double().cpu(), qnn.observables)
    function = SurrogateExecutor(Simulator()).compile(qnn.circuit, qnn.observables)
    assert isinstance(function, SurrogateFunction)
    return _grid(grid, function.coefficients(qnn.angles.detach().double().cpu()))


def _of_stored(qnn: StoredSurrogate) -> Part:
    layout = qnn.layout
    tensors: dict[str, Tensor] = {name: qnn.get_parameter(name) for name in layout.shapes}
    if layout.form.kind == "grid":
        return _grid(layout.grid, qnn.get_parameter("coefficients"))
    if layout.form.kind == "sparse":
        cones = [
            {"inputs": list(inputs), "outputs": list(outputs), "base": list(grid.base), "sizes": list(grid.shape)}
            for inputs, outputs, grid in layout.cones
        ]
        return {"kind": "cones", "cones": cones}, tensors
    if layout.form.kind == "tensor-train":
        chains = [
            {"inputs": list(chain.inputs), "base": list(chain.base), "cores": [list(shape) for shape in shapes]}
            for chain, shapes in zip(layout.chains, layout.cores, strict=True)
        ]
        return {"kind": "chains", "chains": chains}, tensors
    groups = [[list(inputs), list(outputs)] for inputs, outputs in layout.groups]
    return {"kind": "kernels", "base": list(layout.base), "groups": groups}, tensors


def _grid(grid: FourierGrid, coefficients: Tensor) -> Part:
    sizes = {"kind": "grid", "base": list(grid.base), "sizes": list(grid.shape)}
    return sizes, {"coefficients": coefficients.reshape(grid.size, -1)}


def _gates(circuit: Circuit, angles: Tensor, observables: Sequence[Observable] | None) -> Part:
    """Each gate as three matrices `c, d, e` of `c + cos(t) d + sin(t) e`; one without data has the first alone."""
    tables: tuple[list[Tensor], list[Tensor]] = ([], [])
    ops: list[list[Any]] = []
    for op in circuit.ops:
        spec, angle, size = op.spec, op.angle, 2 ** len(op.qubits)
        table = tables[len(op.qubits) - 1]
        source, frequency, phase = None, 0.0, 0.0
        if angle is not None and circuit.is_input(op):
            assert angle.index is not None
            source, frequency, phase = angle.index, spec.frequency * angle.scale, spec.frequency * angle.shift
            parts: list[Any] = [spec.constant, spec.cosine, spec.sine]
        else:
            value = 0.0
            if angle is not None:
                trained = 0.0 if angle.index is None else angle.scale * float(angles[angle.index - circuit.n_inputs])
                value = trained + angle.shift
            zero = [[0] * size] * size
            parts = [spec.matrix(value), zero, zero]
        ops.append([list(op.qubits), len(table), source, frequency, phase])
        matrices = torch.tensor(parts, dtype=torch.complex128)
        table.append(torch.stack([matrices.real, matrices.imag], 1))  # (3, 2, size, size)
    measured = [Observable.z(k) for k in range(circuit.n_qubits)] if observables is None else observables
    terms = [[[c, [[q, p] for q, p in string]] for c, string in one.terms] for one in measured]
    spec_of_all = {"kind": "gates", "qubits": circuit.n_qubits, "ops": ops, "observables": terms}
    empty = [torch.zeros(0, 3, 2, size, size) for size in (2, 4)]
    one, two = (torch.stack(table) if table else none for table, none in zip(tables, empty, strict=True))
    return spec_of_all, {"one": one, "two": two}


def _write_model(run: AdaptedRun, scratch: Path, specs: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """The base model with its adapters, as a folder that transformers loads with `trust_remote_code=True`."""
    import transformers
    from transformers import AutoModelForCausalLM

    base, config = type(run.base).__name__, type(run.base.config).__name__
    if not hasattr(transformers, base) or getattr(run.base, "is_quantized", False):
        raise AdapterError("a model folder needs a plain model of transformers", value=base, hint="--to torch, for any base model")
    users = Counter(id(p) for module in run.base.modules() for p in module._parameters.values() if p is not None)
    for name in specs["modules"]:
        if users[id(run.base.get_submodule(name).weight)] > 1:
            raise AdapterError("the module's weight is tied to another's", value=name, hint="--to torch")
    adapted = _module(scratch / CODE).attach(copy_sharing_weights(run.base), specs)
    own = dict(adapted.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    adapted.save_pretrained(str(scratch))
    run.tokenizer.save_pretrained(str(scratch))
    path = scratch / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    stem = MODELING.removesuffix(".py")
    fields |= {
        "model_type": f"qpeft_{fields['model_type']}",
        "architectures": ["AdaptedForCausalLM"],
        "auto_map": {"AutoConfig": f"{stem}.AdaptedConfig", "AutoModelForCausalLM": f"{stem}.AdaptedForCausalLM"},
        "qpeft": specs,
    }
    text = _MODELING.format(base=base, config=config, model_type=run.base.config.model_type)
    (scratch / MODELING).write_text(text, encoding="utf-8")
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    loaded = AutoModelForCausalLM.from_pretrained(str(scratch), trust_remote_code=True, dtype=run.base.dtype)
    return loaded.to(run.model.device).eval()

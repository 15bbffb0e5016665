"""Writes tests/golden/adapters: one saved adapter for each method and variant, with the outputs it gave.

Run once, at the commit that a file is to be readable from; `tests/adapters/test_golden.py` loads every folder with today's code.

    python tests/golden/make_adapters.py NAME...     # NAME is a key of CASES; without one, those that are not there yet
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import qpeft.adapters.peft
from qpeft.testing.tools import trainable

FOLDER = Path(__file__).parent / "adapters"
WIDTH, TARGETS = 12, ["0", "2"]

SMALL_QPA = {"chunk_size": 32, "hidden_sizes": [8], "map_width": 4, "n_layers": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"qtha-{qnn}": ("QTHA", {"r": 3, "hidden_size": 8, "bond_dim": 2, "n_cores": 2, "n_layers": 2, "qnn": qnn})
        for qnn in ("circuit", "none", "cos", "mlp2", "product", "frozen", "stored")
    },
    "qtha-shared": ("QTHA", {"r": 3, "tensor": False, "n_layers": 1, "share_circuit": "model"}),
    "qtha-multiply": ("QTHA", {"r": 3, "tensor": False, "fusion": "multiply", "alpha": 5.0, "init": "published"}),
    "qcore-side": ("QCORE", {"r": 4, "qubits": 3, "pairs": True}),
    "qcore-side-none": ("QCORE", {"r": 4, "qubits": 0, "frames": "weight"}),
    "qcore-core": ("QCORE", {"r": 4, "qubits": 3, "trained": "core", "frames": "gradient", "circuit": "hardware_efficient"}),
    "qcore-core-frozen": ("QCORE", {"r": 4, "qubits": 3, "trained": "core", "frames": "scaled", "qnn": "frozen"}),
    "qcore-core-stored": ("QCORE", {"r": 4, "qubits": 2, "trained": "core", "matrix": False, "qnn": "stored"}),
    "qpa": ("QPA", {"r": 2, **SMALL_QPA}),
    "qpa-frozen": ("QPA", {"r": 2, "generator": "frozen", "share": "none", **SMALL_QPA}),
    "amplitude": ("AMPLITUDE", {"r": 2, "n_layers": 2}),
    "amplitude-hashed": ("AMPLITUDE", {"r": 2, "n_layers": 2, "generator": "hashed"}),
    "qaa": ("QAA", {"r": 4, "n_layers": 2}),
    "qaa-frozen": ("QAA", {"r": 4, "n_layers": 2, "unitary": "frozen"}),
    "quanta": ("QUANTA", {"n_axes": 3}),
    "quantum_peft-pauli": ("QUANTUM_PEFT", {"r": 2}),
    "quantum_peft-taylor": ("QUANTUM_PEFT", {"r": 2, "parametrisation": "taylor"}),
    "quic": ("QUIC", {"n_blocks": 1}),
    "cayley": ("CAYLEY", {}),
}


def base_model() -> nn.Module:
    """Two linear layers with tanh between them; its weights are those of base.safetensors."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    model.load_state_dict({k: v for k, v in load_file(FOLDER / "base.safetensors").items() if k != "inputs"})
    return model


def make(name: str) -> torch.Tensor:
    """Draw an adapter, change all that it holds, save it; its outputs on the inputs of base.safetensors."""
    peft_type, settings = CASES[name]
    torch.manual_seed(sum(map(ord, name)))
    model = get_peft_model(base_model(), qpeft.adapters.peft.config_class(peft_type)(target_modules=TARGETS, **settings)).eval()
    with torch.no_grad():
        for tensor in trainable(model).values():
            tensor.add_(0.3 * torch.randn_like(tensor))
        for key, buffer in model.named_buffers():
            if key.endswith(".coefficients") or ("gradient" in settings.values() and key.endswith((".up", ".down"))):
                buffer.copy_(0.3 * torch.randn_like(buffer))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(FOLDER / name)
    (FOLDER / name / "README.md").unlink()
    with torch.no_grad():
        outputs: torch.Tensor = model(load_file(FOLDER / "base.safetensors")["inputs"])
    return outputs


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    if not (FOLDER / "base.safetensors").exists():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
        save_file({**model.state_dict(), "inputs": torch.randn(4, WIDTH)}, FOLDER / "base.safetensors")
    outputs = load_file(FOLDER / "outputs.safetensors") if (FOLDER / "outputs.safetensors").exists() else {}
    for name in names or [name for name in CASES if name not in outputs]:
        outputs[name] = make(name)
        print(f"{name}: peft {peft.__version__}, torch {torch.__version__}")
    save_file(outputs, FOLDER / "outputs.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])

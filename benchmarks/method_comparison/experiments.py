"""The experiment files, made from this table: `python -m benchmarks.method_comparison --write`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "experiments"

# folder -> (settings of the adapter, learning rate); q_proj and v_proj as in the suite's LoRA of rank 32 (9,175,040 parameters)
EXPERIMENTS: dict[str, tuple[dict[str, Any], float]] = {
    "qtha/llama-3.2-3B-rank8": ({"peft_type": "QTHA", "r": 8, "n_layers": 1}, 1e-3),
    "qtha/llama-3.2-3B-rank8-published": ({"peft_type": "QTHA", "r": 8, "init": "published"}, 1e-3),
    "qtha/llama-3.2-3B-rank8-no-circuit": ({"peft_type": "QTHA", "r": 8, "qnn": "none"}, 1e-3),
    "qtha/llama-3.2-3B-rank8-mlp2": ({"peft_type": "QTHA", "r": 8, "qnn": "mlp2"}, 1e-3),
    "qpa/llama-3.2-3B-rank8": ({"peft_type": "QPA", "r": 8}, 1e-3),
    "quanta/llama-3.2-3B-5-axes": ({"peft_type": "QUANTA", "n_axes": 5}, 1e-2),
    "quantum_peft/llama-3.2-3B-rank8-pauli": ({"peft_type": "QUANTUM_PEFT", "r": 8, "n_layers": 16}, 1e-2),
    "quantum_peft/llama-3.2-3B-rank8-taylor": ({"peft_type": "QUANTUM_PEFT", "r": 8, "parametrisation": "taylor"}, 3e-2),
    "amplitude/llama-3.2-3B-rank8": ({"peft_type": "AMPLITUDE", "r": 8}, 1e-2),
    "quic/llama-3.2-3B-order2": ({"peft_type": "QUIC", "n_blocks": 1, "max_order": 2}, 1e-3),
    "cayley/llama-3.2-3B-default": ({"peft_type": "CAYLEY"}, 1e-3),
}


def write(folder: Path = FOLDER) -> None:
    """Write every experiment as PEFT saves configurations."""
    from qpeft.training.recipe.adapter_section import build_adapter_config

    for name, (settings, rate) in EXPERIMENTS.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        config = build_adapter_config({**settings, "target_modules": ["q_proj", "v_proj"]})
        with tempfile.TemporaryDirectory() as scratch:
            config.save_pretrained(scratch)
            values = json.loads((Path(scratch) / "adapter_config.json").read_text(encoding="utf-8"))
        values.pop("peft_version", None)
        values["target_modules"] = sorted(values["target_modules"])  # PEFT keeps a set
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (place / "adapter_config.json").write_text(text, encoding="utf-8")
        parameters = {"optimizer_kwargs": {"lr": rate, "weight_decay": 0.0}}
        (place / "training_params.json").write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")

"""Synthetic records: plausible curves from a seeded generator, made here only; nothing of them is a result."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from qpeft.records import Measurement, RunRecord

ARMS = (
    ("LoRA r=8", "lora", 460_800, 2.212),
    ("LoRA r=1", "lora", 57_600, 2.241),
    ("QTHA r=8", "qtha", 52_110, 2.221),
    ("Quantum-PEFT L=3", "quantum_peft", 9_216, 2.262),
    ("QuanTA 16-16-9", "quanta", 118_400, 2.216),
    ("VeRA r=256", "vera", 38_400, 2.252),
    ("IA3", "ia3", 24_576, 2.301),
    ("QTHA without entanglement", "qtha", 52_110, 2.224),
)


def synthetic(
    label: str = "LoRA r=8", method: str = "lora", parameters: int = 460_800, final: float = 2.21, seed: int = 0, **changes: object
) -> RunRecord:
    """A finished run whose held-out loss ends near `final`; `changes` replace fields."""
    noise = random.Random(f"{label}/{seed}")
    end = final + noise.gauss(0, 0.006)
    steps = 200

    def loss(step: int) -> float:
        return end + (3.412 - end) * math.exp(-step / 18)

    quantum = method not in {"lora", "vera", "ia3"}
    fields: dict[str, object] = {
        "label": label,
        "method": method,
        "group": "dolly-small",
        "seed": seed,
        "model": "SmolLM2-135M",
        "trainable_parameters": parameters,
        "base_parameters": 134_515_008,
        "reference_lora_parameters": 460_800,
        "steps": steps,
        "train_tokens": 204_800,
        "wall_s": 180.0 + 3 * seed + (240 if quantum else 0),
        "tokens_per_s": 480.0 if quantum else 1130.0,
        "peak_memory_bytes": int(1.6 * 2**30),
        "circuit_executions": 12_000 if quantum else 0,
        "simulated": quantum,
        "metrics": {"loss": end, "perplexity": math.exp(end), "token_accuracy": 0.9 - end / 6},
        "metrics_before": {"loss": 3.412, "perplexity": math.exp(3.412), "token_accuracy": 0.331},
        "train_curve": tuple(
            Measurement(step=s, loss=loss(s) + noise.gauss(0, 0.12), learning_rate=1e-3) for s in range(2, steps + 1, 2)
        ),
        "eval_curve": tuple(
            Measurement(step=s, loss=loss(s) + (noise.gauss(0, 0.003) if 0 < s < steps else 0)) for s in range(0, steps + 1, 25)
        ),
        "config": {"seed": seed, "method": {"name": method, "label": label}, "optimizer": {"learning_rate": 1e-3, "steps": steps}},
        "versions": {"qpeft": "0.1.0", "torch": "2.6.0", "peft": "0.21.0"},
        "hashes": {"train": "3f" * 32, "eval": "a1" * 32, "model": "77" * 32},
        "machine": {"cpu": "Example CPU", "cores": 2},
        "created_at": f"2025-01-01T00:00:{seed:02d}+00:00",
    }
    return RunRecord(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def record() -> Callable[..., RunRecord]:
    """`synthetic`, as a fixture."""
    return synthetic


@pytest.fixture(scope="session")
def two_by_two() -> list[RunRecord]:
    """2 arms x 2 seeds."""
    return [synthetic(*arm, seed=seed) for arm in (ARMS[0], ARMS[2]) for seed in (0, 1)]


@pytest.fixture(scope="session")
def eight_by_five() -> list[RunRecord]:
    """8 arms x 5 seeds, of which one failed."""
    runs = [synthetic(*arm, seed=seed) for arm in ARMS for seed in range(5)]
    broken = {
        "status": "failed",
        "error": "RunError: loss is not finite at step 12\nlearning rate 1.0 is too high",
        "metrics": {},
        "metrics_before": {},
    }
    return [*runs[:-1], synthetic(*ARMS[-1], seed=4, train_curve=(), eval_curve=(), **broken)]

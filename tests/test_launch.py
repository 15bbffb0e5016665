"""`qpeft exec` and `QPEFT_AUTOLOAD=1`: programs that import no qpeft know its methods, their child processes too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import entry_points

ROOT = Path(__file__).parent.parent
KNOWN = "print('QTHA' in {str(getattr(k, 'value', k)) for k in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING})"
ORDERS = {
    "torch first": f"import torch, peft; {KNOWN}",
    "peft first": f"import peft; {KNOWN}",  # which imports torch, in the middle of its own import
    "from peft": f"from peft import PeftConfig; import peft; {KNOWN}",
    "transformers first": f"from transformers import AutoModel; import peft; {KNOWN}",
    "a child": f"import subprocess, sys; subprocess.run([sys.executable, '-c', {f'import peft; {KNOWN}'!r}], check=True)",
}


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which qpeft's entry points are those of pyproject.toml, however old the installation is."""
    path = os.pathsep.join([str(entry_points(tmp_path / "site")), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {name: value for name, value in os.environ.items() if name != "QPEFT_AUTOLOAD"} | {"PYTHONPATH": path}


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


SLOW = [pytest.param(order, marks=pytest.mark.slow) for order in ORDERS if order != "peft first"]


@pytest.mark.parametrize("order", ["peft first", *SLOW])
def test_exec_makes_the_methods_known(installed: dict[str, str], order: str) -> None:
    done = run([sys.executable, "-m", "qpeft.cli", "exec", sys.executable, "-c", ORDERS[order]], installed)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_nothing_happens_unasked(installed: dict[str, str]) -> None:
    done = run([sys.executable, "-c", f"import peft, sys; {KNOWN}; print('qpeft' in sys.modules)"], installed)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_exec_gives_options_and_exit_code_through(installed: dict[str, str]) -> None:
    script = "import sys; print(sys.argv[1:]); sys.exit(7)"
    done = run([sys.executable, "-m", "qpeft.cli", "exec", sys.executable, "-c", script, "--help", "--allow", "x"], installed)
    assert (done.returncode, done.stdout.strip()) == (7, "['--help', '--allow', 'x']"), done.stderr


def test_what_exec_cannot_do_is_said(installed: dict[str, str]) -> None:
    command = [sys.executable, "-m", "qpeft.cli", "exec"]
    assert "no command" in run(command, installed).stderr
    assert "no such command" in run([*command, "no-such-program"], installed).stderr
    assert "unset" in run([*command, "true"], installed | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}).stderr


def test_a_broken_installation_does_not_break_torch(installed: dict[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "qpeft"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('broken')")
    path = f"{broken.parent}{os.pathsep}{installed['PYTHONPATH']}"
    done = run([sys.executable, "-c", "import torch; print(torch.tensor(1).item())"],
               installed | {"PYTHONPATH": path, "QPEFT_AUTOLOAD": "1"})  # fmt: skip
    assert (done.stdout.strip(), "cannot be imported: broken" in done.stderr) == ("1", True), done.stderr

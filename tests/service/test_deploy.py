"""What is in deploy/ is what its own tools take, and says only what `qpeft` understands."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
YAMLLINT = "{extends: default, rules: {line-length: {max: 140}, document-start: disable, comments: disable, braces: disable}}"
LINTS = {
    "Dockerfile": ["hadolint", "Dockerfile"],
    "yaml": ["yamllint", "--strict", "-d", YAMLLINT, "."],
    "compose": ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"],
    "kubernetes": ["kubernetes-validate", "--strict", "kubernetes/service.yaml"],
}


def lint(*command: str) -> None:
    program = shutil.which(command[0], path=str(Path(sys.executable).parent)) or shutil.which(command[0])
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([program, *command[1:]], cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", LINTS)
def test_lints(name: str) -> None:
    lint(*LINTS[name])


def test_systemd_units(tmp_path: Path) -> None:
    """Checked with a program at hand in the place of /opt/qpeft/bin/qpeft, which systemd-analyze wants to find."""
    units = []
    for unit in sorted((DEPLOY / "systemd").iterdir()):
        text = unit.read_text()
        assert "/opt/qpeft/bin/qpeft" in text
        units.append(tmp_path / unit.name)
        units[-1].write_text(text.replace("/opt/qpeft/bin/qpeft", sys.executable))
    lint("systemd-analyze", "verify", *map(str, units))


def commands() -> list[list[str]]:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    found = [service["command"] for service in compose["services"].values() if "command" in service]
    for manifest in yaml.safe_load_all((DEPLOY / "kubernetes" / "service.yaml").read_text()):
        if manifest["kind"] == "Deployment":
            found += [container["args"] for container in manifest["spec"]["template"]["spec"]["containers"]]
    for unit in (DEPLOY / "systemd").iterdir():
        (line,) = (line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
        found.append(line.split()[1:])
    return [[str(word) for word in command] for command in found]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_are_qpefts(command: list[str]) -> None:
    from qpeft.cli import common, service

    assert service
    group = typer.main.get_command(common.app)
    found = group.get_command(None, command[0])  # type: ignore[attr-defined]
    assert found is not None
    found.make_context(command[0], list(command[1:]))  # raises for an option that it does not have

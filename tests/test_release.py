"""A release is consistent: one version, extras that are tried, workflows that GitHub accepts, licences that users can live with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import extras, release

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_every_file_names_one_version() -> None:
    assert len(set(release.versions().values())) == 1, release.versions()


def test_the_script_refuses_another_tag() -> None:
    (version,) = set(release.versions().values())
    assert release.main([version]) == 0
    assert release.main(["9.9.9"]) == 1


def test_every_extra_is_tried_somewhere() -> None:
    assert set(release.extras()) == set(extras.NEEDS) | set(extras.ELSEWHERE)


def test_the_readme_names_the_lowest_versions() -> None:
    allowed = dict(need.split(">=") for need in release.project()["dependencies"])
    named = re.findall(r"\b(torch|transformers|peft) >= ([\d.]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert dict(named) == {name: allowed[name] for name in ("torch", "transformers", "peft")}


def test_the_lowest_versions_are_tried_with_each_extra_that_other_libraries_change() -> None:
    """`make lowest` lets a resolver find them, so no second list of versions can go stale; its extras exist."""
    line = next(line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if '".[demo,trl' in line)
    names = set(line.split("[")[1].split("]")[0].split(","))
    assert names < set(release.extras())
    assert {"demo", "trl", "qasm", "qiskit", "aer", "pennylane", "service", "applications"} <= names


@pytest.mark.parametrize(
    ("licence", "refused"),
    [("MIT", False), ("GPL-3.0-or-later", True), ("AGPL-3.0", True), ("LGPL-3.0", False), ("MIT OR GPL-2.0", False)],
)
def test_licences_that_bind_users_are_found(licence: str, refused: bool) -> None:
    assert bool(release.forbidden(f"| Name | Version | License |\n|--|--|--|\n| a | 1 | {licence} |")) == refused


def test_workflows_match_githubs_schema() -> None:
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_is_there(path: Path) -> None:
    """Files and make targets that a workflow names exist, and its jobs have the smallest token."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        for step in job.get("steps", []):
            for word in str(step.get("run", "")).split():
                if word.startswith(("tests/", ".ci/")):
                    assert (ROOT / word).exists(), word

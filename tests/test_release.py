"""A release is consistent: one version, extras that are tried, workflows that GitHub accepts, licences that users can live with."""

from __future__ import annotations

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


def test_the_lowest_versions_that_are_tried_are_those_that_are_allowed() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    lowest, _ = workflow["jobs"]["versions"]["strategy"]["matrix"]["include"]
    allowed = dict(need.split(">=") for need in release.project()["dependencies"])
    for pin in lowest["pins"].split():
        name, version = pin.split("==")
        assert version.removesuffix(".0") == allowed[name].removesuffix(".0"), name


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

"""Fixtures of several packages: a tiny Llama with a byte-level tokenizer, and a recipe that trains on it in seconds.

No test reaches for a hub: that is set before anything imports huggingface_hub.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tiny import save_tiny_model, write_tiny_recipe

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    return write_tiny_recipe(tmp_path, tiny_model)


@pytest.fixture(scope="session")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a made-up clinic's table, prepared as a user's own data."""
    from qpeft.applications.preparation.own_table import own_data
    from qpeft.applications.preparation.prepare import prepare
    from tests.applications.clinic import clinic_rows, write_csv

    folder = tmp_path_factory.mktemp("clinic")
    file = write_csv(folder / "clinic.csv", clinic_rows(120))
    data = own_data(file, "ill", positive="yes", drop=("note",), group="patient", groups=("smoker", "visit_age"))
    prepare(data, folder / "prepared")
    return folder / "prepared"

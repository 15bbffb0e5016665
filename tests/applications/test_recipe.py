"""The recipe that `data prepare` writes: it loads, and its numbers are those of the rows."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from qpeft.applications.preparation.own_table import own_data
from qpeft.applications.preparation.prepare import prepare
from qpeft.training.data.examples import load_examples
from qpeft.training.data.tokenization import tokenize_all
from qpeft.training.model.loading import load_tokenizer
from qpeft.training.recipe.config import load_recipe
from tests.applications.clinic import clinic_rows, write_csv


def test_the_recipe_fits_its_rows(tiny_model: Path, tmp_path: Path) -> None:
    data = own_data(write_csv(tmp_path / "clinic.csv", clinic_rows(200)), "ill", positive="yes", group="patient")
    made = prepare(data, tmp_path / "data set", model=str(tiny_model))
    config = load_recipe(made.folder / "recipe.yaml")
    assert (config.name, config.data.train) == ("clinic", str(made.folder / "train.jsonl"))
    examples = load_examples(config.data.train)
    told = tokenize_all(examples, load_tokenizer(config.model), config.data.max_length)
    assert (told.cut_prompts, told.cut_ends) == (0, 0)
    assert config.data.max_length - 8 < told.longest <= config.data.max_length
    assert config.training.max_steps == -(-3 * len(examples) // 8)
    assert config.training.learning_rate == 0.01
    assert config.compare is not None
    assert [arm.label for arm in config.compare.arms] == ["Cayley blocks, o and down", "QTHA", "LoRA r=8"]
    assert config.compare.arms[0].adapter == config.adapter


def test_without_the_model_lengths_are_estimated_and_never_short(
    clinic: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = own_data(write_csv(tmp_path / "clinic.csv", clinic_rows(60)), "ill", positive="yes")
    with caplog.at_level(logging.WARNING):
        made = prepare(data, tmp_path / "out", model="nobody/no-such-model")
    assert "lengths are estimated from characters" in caplog.text
    estimated = load_recipe(made.folder / "recipe.yaml").data.max_length
    longest = max(len(row.messages[0].content) for row in load_examples(str(made.folder / "train.jsonl")))  # type: ignore[union-attr]
    assert longest / 3 < estimated < longest

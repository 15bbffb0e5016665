"""Rows that are read ahead of a fork: the same rows and the same warnings, read once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from qpeft.training.data import run_data
from qpeft.training.model import loading
from qpeft.training.recipe.config import load_recipe


def test_kept_rows_are_read_once_and_warn_in_each_run(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_data, "_kept", None)
    config = load_recipe(recipe, ["data.max_length=8"])
    section, tokenizer = config.data, loading.load_tokenizer(config.model)
    fresh = run_data.load_run_data(section, tokenizer)
    told = [(record.name, record.getMessage()) for record in caplog.records]
    assert any("longer than data.max_length" in message for _, message in told)
    caplog.clear()
    logging.disable(logging.WARNING)  # as prefork.py does
    try:
        run_data.keep(section, tokenizer)
    finally:
        logging.disable(logging.NOTSET)
    assert not caplog.records
    monkeypatch.setattr(run_data, "load_data", None)  # nothing is read any more
    for _ in range(2):
        caplog.clear()
        assert run_data.load_run_data(section, tokenizer) == fresh
        assert [(record.name, record.getMessage()) for record in caplog.records] == told
    logger = logging.getLogger("qpeft.training.data")
    monkeypatch.setattr(logger, "level", logging.ERROR)  # as of the second run on
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    caplog.clear()
    run_data.load_run_data(section, tokenizer)
    assert not caplog.records
    assert capsys.readouterr().err == ""

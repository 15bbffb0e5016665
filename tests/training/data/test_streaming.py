"""Streamed rows: all of them, in an order of seed and epoch, without holding the file; bad rows are named."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from qpeft.errors import ConfigError, DataError
from qpeft.training.data import streaming
from qpeft.training.data.examples import load_examples
from qpeft.training.data.streaming import StreamedRows
from qpeft.training.data.tokenization import tokenize_all
from qpeft.training.loop.checkpoints import held_out_losses
from qpeft.training.loop.run import train
from qpeft.training.recipe.config import DataSection, load_recipe


def _rows(file: Path, tokenizer: object, seed: int = 0, epoch: int = 0) -> list[list[int]]:
    stream = StreamedRows(DataSection(train=str(file), streaming=True, max_length=64), tokenizer, seed)
    stream.set_epoch(epoch)
    return [row["input_ids"] for row in stream]


def test_every_row_once_in_an_order_of_seed_and_epoch(recipe: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, tokenizer = recipe.parent / "rows.jsonl", AutoTokenizer.from_pretrained(tiny_model)
    plain = [row["input_ids"] for row in tokenize_all(load_examples(str(file)), tokenizer, 64).rows]
    for buffer in (3, 1000):
        monkeypatch.setattr(streaming, "BUFFER", buffer)
        found = _rows(file, tokenizer)
        assert sorted(found) == sorted(plain)
        assert found != plain
        assert found == _rows(file, tokenizer)
        assert found != _rows(file, tokenizer, seed=1)
        assert found != _rows(file, tokenizer, epoch=1)


def test_a_file_is_read_only_as_far_as_it_is_used(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BUFFER", 5)
    lines = [json.dumps({"prompt": f"p{i}", "completion": f"c{i}"}) for i in range(20)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([*lines, "not json"]) + "\n")
    section = DataSection(train=str(file), streaming=True)
    rows = iter(StreamedRows(section, AutoTokenizer.from_pretrained(tiny_model), 0))
    assert len(list(itertools.islice(rows, 15))) == 15
    with pytest.raises(DataError, match=r"rows.jsonl:21: not JSON"):
        list(rows)
    lines[7] = json.dumps({"prompt": "p", "completion": 3})
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"rows.jsonl:8: completion"):
        list(StreamedRows(section, AutoTokenizer.from_pretrained(tiny_model), 0))


def test_a_streamed_run_continues_where_it_paused(recipe: Path, tmp_path: Path) -> None:
    settings = ["data.streaming=true", "data.eval_size=null", f"data.eval={recipe.parent / 'rows.jsonl'}", "data.max_eval_rows=4"]
    config = load_recipe(recipe, settings)  # 12 steps of 4 rows: more than one epoch of 40
    whole = train(config, tmp_path / "whole")
    train(config, tmp_path / "paused", until=5)
    assert held_out_losses(tmp_path / "paused").keys() == {5}
    assert train(config, tmp_path / "paused").metrics == pytest.approx(whole.metrics, rel=1e-6)
    assert whole.steps == 12


def test_what_a_stream_cannot_do_is_said(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval_size: streamed rows cannot be split"):
        load_recipe(recipe, ["data.streaming=true"])
    with pytest.raises(ConfigError, match=r"a stream has no length"):
        load_recipe(recipe, ["data.streaming=true", "data.eval_size=null", "training.max_steps=null", "training.eval_strategy=no"])

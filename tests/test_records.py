"""Records: round trip, identity, what is refused, and what a crash leaves behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.errors import ConfigError
from qpeft.records import Measurement, RunRecord, append_record, read_records

RECORD = RunRecord(
    label="QTHA r=8",
    method="QTHA",
    group="demo",
    seed=3,
    model="tiny",
    trainable_parameters=52_110,
    reference_lora_parameters=460_800,
    metrics={"loss": 2.25, "perplexity": 9.4877},
    train_curve=(Measurement(step=1, loss=3.5, learning_rate=1e-3), Measurement(step=2, loss=3.25)),
    eval_curve=(Measurement(step=0, loss=3.4),),
    config={"training": {"seed": 3}, "targets": ["q_proj", "v_proj"]},
    created_at="2025-01-01T00:00:00+00:00",
)

values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.dictionaries(st.text(), st.recursive(values, lambda node: st.lists(node) | st.dictionaries(st.text(), node)), max_size=4)


def test_round_trip() -> None:
    again = RunRecord.from_json(RECORD.to_json())
    assert again == RECORD
    assert again.train_curve[0] == Measurement(step=1, loss=3.5, learning_rate=1e-3)


@settings(max_examples=50, deadline=None)
@given(config=trees, label=st.text(), loss=st.floats(allow_nan=False, allow_infinity=False))
def test_round_trip_keeps_content_and_id(config: dict[str, object], label: str, loss: float) -> None:
    record = dataclasses.replace(RECORD, config=config, label=label, metrics={"loss": loss})
    text = record.to_json()
    assert "\n" not in text
    again = RunRecord.from_json(text)
    assert again == record
    assert again.id == record.id


def test_id_is_the_hash_of_the_canonical_json() -> None:
    canonical = json.dumps(json.loads(RECORD.to_json()), sort_keys=True, separators=(",", ":"))
    assert RECORD.id == hashlib.sha256(canonical.encode()).hexdigest()


def test_id_ignores_the_order_of_keys_and_nothing_else() -> None:
    turned = dataclasses.replace(RECORD, metrics={"perplexity": 9.4877, "loss": 2.25})
    assert turned.id == RECORD.id
    changed = {
        "label": "x",
        "method": "x",
        "group": "x",
        "seed": 4,
        "model": "x",
        "status": "failed",
        "error": "x",
        "metrics": {"loss": 2.250000000000001, "perplexity": 9.4877},
        "train_curve": RECORD.train_curve[:1],
        "simulated": True,
        "created_at": "",
    }
    ids = {dataclasses.replace(RECORD, **{name: value}).id for name, value in changed.items()}
    assert len(ids | {RECORD.id}) == len(changed) + 1


def test_id_of_schema_1_is_stable() -> None:
    """Ids are written into other files: a changed default or field order must not change those of records already written."""
    bare = RunRecord(label="a", method="LORA", group="g", seed=0, model="m")
    assert bare.id == "1b13542bf6980447a3f986f8275dfba6afabd656b7aa21b30fa697b2900d8016"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(number: float, tmp_path: Path) -> None:
    diverged = dataclasses.replace(RECORD, metrics={"loss": number})
    with pytest.raises(ValueError):
        diverged.to_json()
    with pytest.raises(ValueError):
        append_record(tmp_path / "records.jsonl", diverged)
    assert not (tmp_path / "records.jsonl").exists()


def test_append_and_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "records.jsonl"
    several = [dataclasses.replace(RECORD, seed=seed) for seed in (2, 0, 1)]
    for record in several:
        append_record(path, record)
    assert list(read_records(path)) == several
    assert path.read_bytes().count(b"\n") == 3


def append_several(path: Path, start: int) -> None:
    for seed in range(start, start + 10):
        append_record(path, dataclasses.replace(RECORD, seed=seed))


def test_several_processes_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=append_several, args=(path, 10 * k)) for k in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    assert sorted(record.seed for record in read_records(path)) == list(range(40))


def test_torn_last_line_is_skipped_and_then_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append_record(path, RECORD)
    other = dataclasses.replace(RECORD, seed=4)
    line = other.to_json().encode()
    for length in (1, len(line) // 2, len(line)):
        path.write_bytes(RECORD.to_json().encode() + b"\n" + line[:length])
        assert list(read_records(path)) == [RECORD]
        append_record(path, other)
        assert list(read_records(path)) == [RECORD, other]


def test_blank_lines_are_skipped_but_counted(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"\n{RECORD.to_json()}\n\n{{}}\n")
    stream = read_records(path)
    assert next(stream) == RECORD
    with pytest.raises(ConfigError) as caught:
        next(stream)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(path), 4, "schema")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema": 2}, "schema"),
        ({"schema": None}, "schema"),
        ({"colour": "red"}, "colour"),
        ({"train_curve": [{"step": 1, "loss": 2.0, "colour": "red"}]}, ""),
        ({"train_curve": [3]}, ""),
        ({"train_curve": None}, ""),
    ],
)
def test_what_is_not_a_record_is_refused(change: dict[str, object], field: str) -> None:
    text = json.dumps(json.loads(RECORD.to_json()) | change)
    with pytest.raises(ConfigError) as caught:
        RunRecord.from_json(text, file="r.jsonl", line=7)
    assert (caught.value.file, caught.value.line, caught.value.field) == ("r.jsonl", 7, field)


def test_a_record_needs_its_fields() -> None:
    values = json.loads(RECORD.to_json())
    del values["label"]
    with pytest.raises(ConfigError, match="label"):
        RunRecord.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "[1]", "3", '"text"', "{", '{"schema": 1} x'])
def test_text_that_is_not_one_json_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        RunRecord.from_json(text, file="r.jsonl", line=1)


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECORD.seed = 5  # type: ignore[misc]

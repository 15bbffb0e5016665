"""Rows and examples: every format from every kind of file, what each broken file says, and splits without leaks."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qpeft.errors import DataError, MissingDependencyError
from qpeft.training.data.examples import (
    FORMATS,
    Completion,
    Conversation,
    Example,
    Message,
    Text,
    content_hash,
    data_hash,
    load_data,
    load_examples,
    split,
)
from qpeft.training.data.files import read_rows
from qpeft.training.recipe.config import DataSection

HERE = Path(__file__).parent
BROKEN = yaml.safe_load((HERE / "broken.yaml").read_text())


def conversation(*contents: str, system: str = "") -> Conversation:
    turns = [Message(("user", "assistant")[index % 2], content) for index, content in enumerate(contents)]
    return Conversation(tuple([Message("system", system)] * bool(system) + turns))


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def rows_file(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    return write(folder, name, "\n".join(map(json.dumps, rows)))


def section(**values: object) -> DataSection:
    return DataSection.model_validate_json(json.dumps(values))


def test_the_table_names_every_broken_file():
    assert set(BROKEN) == {path.name for path in (HERE / "broken").iterdir()}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file(name: str):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(DataError) as caught:
        load_examples(str(HERE / "broken" / name))
    message = str(caught.value)
    assert [part for part in BROKEN[name] if part not in message] == [], message


def test_at_most_twenty_problems_are_shown_and_all_counted():
    with pytest.raises(DataError) as caught:
        load_examples(str(HERE / "broken" / "many.jsonl"))
    assert len(caught.value.problems) == 21
    assert [problem.line for problem in caught.value.problems[:20]] == list(range(2, 22))


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.csv: no such file; expected a data file"):
        load_examples(str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="extension ''"):
        load_examples(str(tmp_path))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv: not a file"):
        load_examples(str(tmp_path / "folder.csv"))


def test_deep_nesting(tmp_path: Path):
    for name in ("deep.json", "deep.jsonl"):
        with pytest.raises(DataError):
            load_examples(write(tmp_path, name, '[{"text": ' + "[" * 100_000))


FORMS: list[tuple[str, dict[str, Any], Example]] = [
    (
        "messages",
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "id": 3},
        conversation("q", "a"),
    ),
    (
        "messages",
        {"messages": [{"role": r, "content": r} for r in ("system", "user", "assistant", "user")]},
        conversation("user", "assistant", "user", system="system"),
    ),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, conversation("q", "a")),
    (
        "sharegpt",
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        conversation("q", "a", system="s"),
    ),
    ("prompt_completion", {"prompt": "q", "completion": " a"}, Completion("q", " a")),
    (
        "prompt_completion",
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        Conversation(conversation("q", "a").messages, 1),
    ),
    (
        "prompt_completion",
        {"prompt": "q", "completion": [{"role": "assistant", "content": "a"}]},
        Conversation(conversation("q", "a").messages, 1),
    ),
    (
        "prompt_completion",
        {"prompt": [{"role": "user", "content": "q"}], "completion": "a"},
        Conversation(conversation("q", "a").messages, 1),
    ),
    ("alpaca", {"instruction": "do", "input": "", "output": "done", "text": "all of it"}, conversation("do", "done")),
    ("alpaca", {"instruction": "do", "input": "this", "output": "done"}, conversation("do\n\nthis", "done")),
    (
        "alpaca",
        {"instruction": "do", "input": None, "output": "done", "system": "s", "history": [["q", "a"]]},
        conversation("q", "a", "do", "done", system="s"),
    ),
    ("text", {"text": "once"}, Text("once")),
]


@pytest.mark.parametrize(("format", "row", "example"), FORMS)
def test_format_is_read_and_detected(tmp_path: Path, format: str, row: dict[str, Any], example: Example):
    for name, content in (
        ("rows.jsonl", json.dumps(row)),
        ("rows.json", json.dumps([row], indent=1)),
        ("bom.jsonl", "\ufeff" + json.dumps(row)),
    ):
        path = write(tmp_path, name, content)
        assert load_examples(path) == load_examples(path, format=format) == [example]


def test_declared_format_wins(tmp_path: Path):
    path = rows_file(tmp_path, [{"instruction": "do", "output": "done", "text": "all of it"}])
    assert load_examples(path, format="text") == [Text("all of it")]
    with pytest.raises(DataError, match="messages: missing; expected a list of"):
        load_examples(path, format="messages")
    with pytest.raises(DataError, match=r"data\.format: got 'yaml'; expected auto or one of messages"):
        load_examples(path, format="yaml")


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_tables_with_line_breaks_in_cells(tmp_path: Path, suffix: str, delimiter: str):
    table = [["id", " instruction", "input", "output"], ["1", 'say "x"\nplease', "", "x, y\r\nz"], [], ["2", "b", "c", "d"]]
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter).writerows(table)
    path = write(tmp_path, "rows" + suffix, "\ufeff" + stream.getvalue())
    assert load_examples(path) == [conversation('say "x"\nplease', "x, y\r\nz"), conversation("b\n\nc", "d")]
    assert [row.line for row in read_rows(path)] == [2, 6]


def test_json_rows_know_the_line_they_start_on(tmp_path: Path):
    path = write(tmp_path, "rows.json", '\n[{"text": "a"}, {"text":\n"b"},\n\n  {"text": "c"}\n]\n')
    assert [row.line for row in read_rows(path)] == [2, 2, 5]
    assert [getattr(example, "place", "") for example in load_examples(path)] == [f"{path}:{line}" for line in (2, 2, 5)]


def test_parquet(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}] * 2
    parquet.write_table(table.from_pylist(rows), tmp_path / "rows.parquet")
    assert load_examples(str(tmp_path / "rows.parquet")) == [conversation("q", "a")] * 2
    parquet.write_table(table.from_pylist([{"text": "a"}, {"text": None}]), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad\.parquet: row 1\.text: missing"):
        load_examples(str(tmp_path / "bad.parquet"))


@pytest.mark.parametrize(("source", "package"), [("org/set", "datasets"), ("rows.parquet", "pyarrow")])
def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, package: str):
    for name in ("datasets", "pyarrow", "pyarrow.lib", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingDependencyError, match=rf"{package}.*pip install"):
        load_examples(source)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], list[tuple[object, ...]]]:
    """Puts rows (or an error) in place of the hub; returns the calls made."""
    datasets = pytest.importorskip("datasets")
    calls: list[tuple[object, ...]] = []

    def answer(content: object) -> list[tuple[object, ...]]:
        def load_dataset(path: str, name: str | None, *, split: str) -> object:
            calls.append((path, name, split))
            if isinstance(content, Exception):
                raise content
            return datasets.Dataset.from_list(content)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return answer


def test_hub_dataset(hub):
    calls = hub([{"text": "a"}, {"text": "b"}, {"text": "c"}])
    assert load_examples("org/set", split="validation", name="small", limit=2) == [Text("a"), Text("b")]
    assert calls == [("org/set", "small", "validation")]


def test_hub_problems_name_the_row(hub):
    hub([{"text": "a"}, {"text": ""}])
    with pytest.raises(DataError, match=r"org/set \(train\): row 1\.text: empty"):
        load_examples("org/set")
    hub([])
    with pytest.raises(DataError, match="the split holds no rows"):
        load_examples("org/set")
    hub(ConnectionError("no route\nto the host"))
    with pytest.raises(DataError, match=r"org/set \(train\): the dataset cannot be loaded: no route; expected a dataset id"):
        load_examples("org/set")


def test_system_message(tmp_path: Path):
    path = rows_file(tmp_path, [FORMS[0][1], FORMS[1][1]])
    first, second = load_examples(path, system="Be kind.")
    assert (first, second) == (conversation("q", "a", system="Be kind."), FORMS[1][2])
    given_prompt = rows_file(tmp_path, [FORMS[5][1]], "prompt.jsonl")
    assert load_examples(given_prompt, system="Be kind.") == [Conversation(conversation("q", "a", system="Be kind.").messages, 2)]
    for row in (FORMS[4][1], FORMS[11][1]):
        with pytest.raises(DataError, match=r"data\.system: a system message was given for rows of plain text"):
            load_examples(rows_file(tmp_path, [row], "plain.jsonl"), system="Be kind.")


def test_limit_keeps_the_first_rows(tmp_path: Path):
    path = rows_file(tmp_path, [{"text": str(index)} for index in range(5)])
    assert load_examples(path, limit=2) == [Text("0"), Text("1")]
    assert len(load_examples(path, limit=99)) == 5


def test_hashes_are_of_the_content_alone(tmp_path: Path):
    one, two = (
        load_examples(rows_file(tmp_path, [{"text": "a", "id": 1}])),
        load_examples(rows_file(tmp_path, [{"text": "a"}], "b.jsonl")),
    )
    assert (content_hash(one[0]), data_hash(one)) == (content_hash(two[0]), data_hash(two))
    different: list[Example] = [Text("a"), Text("a\n"), Completion("a", ""), Completion("", "a"), conversation("a")]
    different += [conversation("a", "b"), conversation("a", "b", system="s"), Conversation(conversation("a", "b").messages, 1)]
    assert len(set(map(content_hash, different))) == len(different)
    assert data_hash(different) != data_hash(different[::-1])
    parts = [hashlib.sha256(content).hexdigest() for content in (b'["text","a"]', b'["text","\\u00e9"]')]
    assert data_hash([Text("a"), Text("é")]) == hashlib.sha256("\n".join(parts).encode()).hexdigest()


@given(words=st.lists(st.sampled_from("abcdefghij"), min_size=2, max_size=40), size=st.integers(1, 9), seed=st.integers(0, 5))
def test_split_has_no_row_on_both_sides(words: list[str], size: int, seed: int):
    examples = [Text(word) for word in words]
    if size >= len(set(words)):
        with pytest.raises(DataError, match=r"data\.eval_size: got .*distinct rows.*hint: lower data\.eval_size"):
            split(examples, size, seed)
        return
    train, held_out = split(examples, size, seed)
    assert len(held_out) == len(set(held_out)) == size
    assert train == [example for example in examples if example not in held_out]
    assert held_out == [example for example in dict.fromkeys(examples) if example in held_out]
    assert set(split(examples[::-1], size, seed)[1]) == set(held_out)


def test_split_depends_on_the_seed():
    examples = [Text(str(index)) for index in range(100)]
    assert split(examples, 10, 0) == split(examples, 10, 0)
    assert len({data_hash(split(examples, 10, seed)[1]) for seed in range(5)}) == 5


def test_load_data_splits_before_it_limits(tmp_path: Path):
    path = rows_file(tmp_path, [{"text": str(index)} for index in range(20)])
    train, held_out = load_data(section(train=path, eval_size=5, max_train_rows=3, max_eval_rows=2))
    everything = load_data(section(train=path, eval_size=5))
    assert train == everything[0][:3]
    assert len(held_out) == 2
    assert set(held_out) < set(everything[1])
    assert load_data(section(train=path)) == ([Text(str(index)) for index in range(20)], [])
    assert load_data(section(train=path, eval_size=5, split_seed=1))[1] != everything[1]


def test_a_sorted_file_is_named_when_its_first_rows_have_one_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [{"prompt": f"q{index}", "completion": "no" if index < 60 else "yes"} for index in range(120)]
    path, other = rows_file(tmp_path, rows), rows_file(tmp_path, [{"prompt": "q", "completion": "no"}], "other.jsonl")
    held_out = load_data(section(train=path, eval_size=60, max_eval_rows=30))[1]
    assert len(held_out) == 30
    assert {example.completion for example in held_out if isinstance(example, Completion)} == {"no", "yes"}
    assert not caplog.text
    load_data(section(train=other, eval=path, max_eval_rows=20))
    assert "data.max_eval_rows = 20: these first rows all have the answer 'no', later ones do not; shuffle the file" in caplog.text
    load_data(section(train=path, eval=other, max_train_rows=100))
    assert "max_train_rows" not in caplog.text


def test_load_data_counts_rows_in_both_sources(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    train = rows_file(tmp_path, [{"text": "a"}, {"text": "b"}])
    held_out = rows_file(tmp_path, [{"text": "b"}, {"text": "c"}], "eval.jsonl")
    with caplog.at_level(logging.WARNING):
        assert load_data(section(train=train, eval=held_out)) == ([Text("a"), Text("b")], [Text("b"), Text("c")])
    assert "1 rows of the eval data are also in the training data" in caplog.text


def test_load_data_takes_the_eval_split_of_a_hub_dataset(hub):
    calls = hub([{"text": "a"}])
    load_data(section(train="org/set", eval="org/set", name="small", eval_split="validation"))
    assert calls == [("org/set", "small", "train"), ("org/set", "small", "validation")]


def attempt(path: str, format: str = "auto") -> tuple[list[Example], str]:
    """(examples, "") or ([], message of the DataError); any other exception fails the test."""
    try:
        return load_examples(path, format=format), ""
    except DataError as error:
        return [], str(error)


JSON_BITS = ['{"text": "a"}', "{", "}", "[", "]", ",", "\n", '"', '"messages"', ": ", "NaN", "1e999", "\\ud800", "null", "\ufeff"]
JSON_BITS += ["\x00", "é", '{"prompt":', "[[", "9" * 30]
JSON_LIKE = st.lists(st.sampled_from(JSON_BITS), max_size=20).map("".join)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=60), JSON_LIKE), suffix=st.sampled_from([".json", ".jsonl", ".csv", ".tsv"]))
def test_any_text_is_data_or_a_data_error(tmp_path: Path, text: str, suffix: str):
    path = write(tmp_path, "random" + suffix, text.encode("utf-8", "surrogatepass"))
    examples, message = attempt(path)
    assert examples or path in message
    assert data_hash(examples)


LEAVES = [
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=4),
    st.sampled_from(["user", "assistant", "gpt"]),
]
KEYS = st.sampled_from(["role", "content", "from", "value"])
VALUES = st.recursive(
    st.one_of(LEAVES), lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)), max_leaves=10
)
FIELD_NAMES = ["messages", "conversations", "prompt", "completion", "instruction", "input", "output", "history", "system", "text"]
ROWS = st.lists(st.dictionaries(st.sampled_from(FIELD_NAMES), VALUES, max_size=5), min_size=1, max_size=3)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, format=st.sampled_from(["auto", *FORMATS]))
def test_any_row_is_an_example_or_a_data_error(tmp_path: Path, rows: list[dict[str, Any]], format: str):
    path = rows_file(tmp_path, rows)
    examples, message = attempt(path, format)
    assert len(examples) == len(rows) or path in message

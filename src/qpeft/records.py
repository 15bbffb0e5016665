"""Results as frozen records: JSON lines, content-addressed, units in the names. Reports are made from these alone.

A record file is JSON Lines, one `RunRecord` a line, append-only. A record's `id` is the SHA-256 of its canonical JSON (keys
sorted, no spaces), so equal content has equal id and a record cannot be edited unnoticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qpeft.errors import ConfigError
from qpeft.files import append_line

SCHEMA = 1
ADDED = frozenset({"backend", "stored_parameters", "inference_parameters"})  # fields younger than the schema


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One point of a curve: `step` (optimizer steps done), `loss` (mean token cross-entropy, nats), learning rate at that step."""

    step: int
    loss: float
    learning_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One method x seed trained and evaluated.

    `label` is the arm's display name ("QTHA r=8"), `group` joins arms that answer one question (the recipe's name).
    `metrics` is measured on held-out rows after training, `metrics_before` on the same rows with the untouched model
    (loss in nats/token, perplexity, token_accuracy in 0..1). `train_curve` holds logged training loss, `eval_curve`
    held-out loss by step, step 0 first. `wall_s` is training time alone; `train_tokens` counts non-padding tokens;
    `peak_memory_bytes` is the largest resident set while it ran. `stored_parameters` counts the numbers in the adapter's file,
    frozen ones too; `inference_parameters` those that inference needs in addition to the base model: none where the adapter merges.
    `config` is the resolved recipe, `versions` the packages, `hashes` the data and the base model. `simulated` is true when
    circuits ran and a classical simulator ran them.
    `status` is "ok", "failed" (then `error` says why: failures are published too) or "paused" (such a record is not kept).
    `backend` is empty unless circuits ran on a backend; then it holds its name, calibrations, `shots_per_circuit`, gradient, what
    was spent (`circuits`, `shots`, `programs`, `jobs`, `chip_s`: estimated seconds of chip time, queue not counted) and
    `exact_loss`, the held-out loss with exact circuits.

    A field that is added later is left out of the JSON while it has its default, so that the ids of older records stay theirs and
    `SCHEMA` need not change. Changing or removing a field is another schema.
    """

    label: str
    method: str
    group: str
    seed: int
    model: str
    status: str = "ok"
    error: str = ""
    trainable_parameters: int = 0
    base_parameters: int = 0
    stored_parameters: int | None = None
    inference_parameters: int | None = None
    reference_lora_parameters: int | None = None
    steps: int = 0
    train_tokens: int = 0
    wall_s: float = 0.0
    tokens_per_s: float = 0.0
    peak_memory_bytes: int = 0
    circuit_executions: int = 0
    shots: int = 0
    simulated: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    metrics_before: Mapping[str, float] = field(default_factory=dict)
    train_curve: tuple[Measurement, ...] = ()
    eval_curve: tuple[Measurement, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    backend: Mapping[str, Any] = field(default_factory=dict)
    created_at: str = ""
    schema: int = SCHEMA

    @property
    def id(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON on one line."""
        plain = json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))  # keys become text before they are sorted
        plain = {name: value for name, value in plain.items() if name not in ADDED or value not in (None, {})}
        return json.dumps(plain, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, *, file: str = "", line: int = 0) -> RunRecord:
        """Read one line of a record file.

        Args:
            text: the line.
            file: name of the file, for messages.
            line: line in the file, from 1, for messages.

        Raises:
            ConfigError: no record of this schema; the message names file, line and field.
        """
        try:
            values = json.loads(text, parse_constant=_refuse)
        except ValueError as error:
            raise ConfigError(f"not JSON: {error}", file=file, line=line, expected="one JSON object a line") from error
        if not isinstance(values, dict):
            raise ConfigError("not a record", file=file, line=line, expected="one JSON object a line")
        if values.get("schema") != SCHEMA:
            raise ConfigError(f"record schema {values.get('schema')!r}", file=file, line=line, field="schema", expected=f"{SCHEMA}")
        known = {f.name: f for f in dataclasses.fields(cls)}
        for name in values.keys() - known.keys():
            raise ConfigError("unknown field", file=file, line=line, field=name, expected=f"one of {', '.join(sorted(known))}")
        try:
            for name in ("train_curve", "eval_curve"):
                values[name] = tuple(Measurement(**point) for point in values.get(name, ()))
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"incomplete record: {error}", file=file, line=line, expected="the fields of RunRecord") from error


def append_record(path: str | os.PathLike[str], record: RunRecord) -> None:
    """Append one record and flush it to disk, so that a crash after the call loses nothing; several processes may do so.

    Args:
        path: the record file; made if it is missing.
        record: the record.
    """
    append_line(Path(path), record.to_json())


def read_records(path: str | os.PathLike[str]) -> Iterator[RunRecord]:
    """Yield the records of a JSON Lines file in order, blank lines skipped; a torn last line (no newline) is skipped too."""
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip() and line.endswith("\n"):
                yield RunRecord.from_json(line, file=str(path), line=number)

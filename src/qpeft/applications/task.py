"""The `Task` of a data set, stored next to the rows as task.json: the question about a row, and how answers are scored.

A table's row becomes one sentence, "Age is 35 years; housing is own; ...", with field names and categories spelled out, and the
label is the answer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qpeft.applications.columns import Field, number
from qpeft.applications.notation import Notation
from qpeft.errors import DataError

FILE = "task.json"
BECAUSE = ", because of "


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows told apart by one column: by `values` (category -> group) or by `edges` (a number's half-open intervals)."""

    name: str
    field: str
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    edges: Sequence[float] = ()

    def of(self, row: Mapping[str, str]) -> str:
        """The row's group; "unknown" where the column is empty."""
        value = (row.get(self.field) or "").strip()
        if not self.edges:
            return self.values.get(value, value) or "unknown"
        found = number(value)
        if found is None:
            return "unknown"
        below = [edge for edge in self.edges if edge <= found]
        above = [edge for edge in self.edges if edge > found]
        if not below:
            return f"below {above[0]:g}"
        return f"{below[-1]:g} to below {above[0]:g}" if above else f"{below[-1]:g} and above"


def group_order(name: str) -> tuple[float, str]:
    """Sorts the names of groups: intervals by their lower edge, then names."""
    first = name.partition(" ")[0]
    edge = number(first)
    return (float("-inf") if first == "below" else float("inf") if edge is None else edge, name)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: the question to the model, and how its answers are scored.

    `kind`: "classification" (the answer is one of `labels`), "number" (exact match of the last number) or "text" (ROUGE).
    `labels` maps a value of the column `target` to the answer. `positive` is the answer whose probability ranks rows, for two
    labels. `cost[true][predicted]` weighs errors. `groups` are reported apart. `fields` is empty for kinds other than
    classification, whose rows are messages already. With `reasons` the label is followed by so many columns that speak for it, in
    words: "bad, because of savings; the duration of the loan" (see reasons.py). `licence`, `use` and `limits` are the data's.
    """

    name: str
    title: str
    kind: str
    instruction: str = ""
    target: str = ""
    fields: tuple[Field, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    positive: str = ""
    cost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    reasons: int = 0
    licence: str = ""
    use: str = ""
    limits: tuple[str, ...] = ()

    def refusals(self, row: Mapping[str, str]) -> list[str]:
        """Every reason why the model cannot be asked about the row."""
        return [reason for f in self.fields if (reason := f.refusal(row.get(f.name))) is not None]

    def warnings(self, row: Mapping[str, str]) -> list[str]:
        """Every reason why the answer about the row may be worse than measured."""
        return [reason for f in self.fields if (reason := f.warning(row.get(f.name))) is not None]

    def sentence(self, row: Mapping[str, str]) -> str:
        """The row as one sentence; the text itself where the row is one text."""
        if len(self.fields) == 1 and self.fields[0].kind == "text":
            return self.fields[0].say(row.get(self.fields[0].name))
        said = "; ".join(f"{f.words} is {f.say(row.get(f.name))}" for f in self.fields)
        return said[:1].upper() + said[1:] + "."

    def prompt(self, row: Mapping[str, str]) -> str:
        """The user's message."""
        return f"{self.instruction}\n\n{self.sentence(row)}"

    def answer(self, row: Mapping[str, str]) -> str:
        """The true answer."""
        return self.labels[row[self.target]]

    @property
    def answers(self) -> list[str]:
        """The answers, each once, in order."""
        return list(dict.fromkeys(self.labels.values()))

    @property
    def beginnings(self) -> list[str]:
        """Beginning of the assistant's turn for each answer: the whole turn, or the part before its reasons."""
        return [answer + BECAUSE.rstrip() for answer in self.answers] if self.reasons else self.answers

    def explained(self, answer: str, names: Sequence[str]) -> str:
        """The answer with the columns that are its reasons.

        Args:
            answer: the answer.
            names: the columns that are its reasons, the strongest first.
        """
        words = {f.name: f.words for f in self.fields}
        return answer + BECAUSE + "; ".join(words[name] for name in names)

    def parse(self, text: str) -> tuple[str, list[str]] | None:
        """The answer and the columns that a text of the form of `explained` names, or None for another form."""
        answer, because, rest = text.strip().partition(BECAUSE)
        columns = {f.words: f.name for f in self.fields}
        names = [columns.get(part.strip()) for part in rest.removesuffix(".").split(";")]
        found = [name for name in names if name is not None]
        well_formed = because and answer in self.answers and len(found) == len(names) == len(set(found)) == self.reasons
        return (answer, found) if well_formed else None

    def write(self, folder: Path) -> None:
        """Write the task as JSON to `task.json` in an existing folder; `read` loads it."""
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Task:
        """Raises DataError naming the file."""
        try:
            given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            given["fields"] = tuple(_field(f) for f in given.get("fields", ()))
            given["groups"] = tuple(Group(**g) for g in given.get("groups", ()))
            given["limits"] = tuple(given.get("limits", ()))
            return cls(**given)
        except FileNotFoundError as error:
            raise DataError("no such file", file=str(path), hint="qpeft data prepare writes it next to the rows") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"not a task: {error}", file=str(path), expected="what qpeft data prepare writes") from error


def _field(given: dict[str, Any]) -> Field:
    notation = given.get("notation")
    return Field(**{**given, "notation": Notation(**notation) if notation is not None else None})

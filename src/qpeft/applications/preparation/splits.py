"""Train, validation and test splits without leakage: grouped, stratified, deduplicated, independent of the order of rows."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from qpeft.errors import DataError

Row = TypeVar("Row", bound=Mapping[str, Any])
PARTS = ("train", "validation", "test")


def normalised(text: str) -> str:
    """Text without case, punctuation and spacing, to find copies."""
    return " ".join(re.findall(r"\w+(?:\.\d+)?", text.lower()))


@dataclass(frozen=True)
class Split:
    """The parts, each shuffled by content, and how many rows were left out as copies, or as kin of an official test row."""

    parts: Mapping[str, list[Any]]
    left_out: int


def _order(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def split(
    rows: Sequence[Row],
    *,
    prompt: Callable[[Row], str],
    label: Callable[[Row], str],
    group: Callable[[Row], str] | None = None,
    in_test: Callable[[Row], bool] | None = None,
    fractions: tuple[float, float] = (0.15, 0.15),
    seed: int = 0,
    shuffled: Collection[str] = PARTS,
) -> Split:
    """Rows into train, validation and test of these `fractions` (validation, test).

    Copies (equal `prompt` and `label`) are kept once; let `prompt` be `normalised` where case and punctuation mean nothing. Rows of
    one group, and rows of equal prompt, stay together: they are joined transitively and go to one part whole. Within each stratum
    (the commonest label of a group) groups are taken in the order of a hash of their content and the seed, to the test part
    first. `in_test` names the rows that the source itself keeps for testing: they are the test part, and what shares a group or
    a prompt with one of them is left out of the others.

    The parts `shuffled` are in the order of another hash than the one that chose their rows: rows at the ends of a stratum's range
    of hashes would come first, so that a part began with rows of one label. The others keep the order of earlier versions.

    Raises DataError if a part would be empty.
    """
    official = in_test or (lambda row: False)
    copies: dict[str, Row] = {}
    joined = _Union()
    for row in rows:
        text = prompt(row)
        key = f"{text}\0{label(row)}"
        if key not in copies or _rank(row, official) < _rank(copies[key], official):
            copies[key] = row
        joined.join(key, f"prompt:{text}")
        if group is not None and (name := group(row)):
            joined.join(key, f"group:{name}")
    groups: dict[str, list[str]] = defaultdict(list)
    for key in copies:
        groups[joined.root(key)].append(key)

    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    strata: dict[str, list[list[str]]] = defaultdict(list)
    for members in groups.values():
        if tested := [key for key in members if official(copies[key])]:
            parts["test"] += tested
        else:
            strata[_commonest([label(copies[key]) for key in members])].append(sorted(members))
    wanted = {"test": 0.0 if in_test else fractions[1], "validation": fractions[0]}
    for stratum in strata.values():
        stratum.sort(key=lambda members: _order(seed, members[0]))
        total, waiting = sum(map(len, stratum)), iter(stratum)
        for part, share in wanted.items():
            taken = 0
            while taken < round(share * total) and (group_keys := next(waiting, [])):
                parts[part] += group_keys
                taken += len(group_keys)
        parts["train"] += [key for group_keys in waiting for key in group_keys]
    for part, keys in parts.items():
        if not keys:
            raise DataError(f"the {part} part would be empty", expected="more rows, or other fractions")
    made = {part: _in_order(keys, seed, f"{part}:" if part in shuffled else "", copies) for part, keys in parts.items()}
    return Split(made, len(rows) - sum(map(len, made.values())))


def _in_order(keys: Sequence[str], seed: int, salt: str, rows: Mapping[str, Row]) -> list[Row]:
    return [rows[key] for key in sorted(keys, key=lambda key: _order(seed, salt + key))]


def _rank(row: Mapping[str, Any], official: Callable[[Any], bool]) -> tuple[bool, str]:
    """The smallest of several copies is kept: an official test row, then by content, so that the order of rows means nothing."""
    return not official(row), json.dumps(row, sort_keys=True)


def _commonest(labels: Sequence[str]) -> str:
    counts = Counter(labels)
    return min(counts, key=lambda name: (-counts[name], name))


class _Union:
    """Disjoint sets of names."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            self.parent[name] = self.parent[self.parent[name]]
            name = self.parent[name]
        return name

    def join(self, one: str, other: str) -> None:
        a, b = sorted((self.root(one), self.root(other)))
        self.parent[b] = a

"""No part knows anything of another, whatever the rows; and the same rows give the same parts in any order."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.applications.preparation.splits import PARTS, normalised, split
from qpeft.errors import DataError


def rows_of(n: int, seed: int = 0, groups: int = 40) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [
        {"text": f"case {rng.randint(0, n)}", "label": rng.choice("aab"), "patient": f"p{rng.randint(0, groups)}"} for _ in range(n)
    ]


def parted(rows: list[dict[str, str]], **given: object):  # type: ignore[no-untyped-def]
    return split(rows, prompt=lambda r: r["text"], label=lambda r: r["label"], group=lambda r: r["patient"], **given)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_prompt_and_no_group_is_in_two_parts(seed: int) -> None:
    rows = rows_of(150, seed, groups=150)
    found = parted(rows)
    for key in ("text", "patient"):
        held = [{row[key] for row in found.parts[part]} for part in PARTS]
        assert not held[0] & held[1]
        assert not held[0] & held[2]
        assert not held[1] & held[2]
    kept = [tuple(sorted(row.items())) for part in PARTS for row in found.parts[part]]
    assert len(set(kept)) == len(kept)
    assert len(kept) + found.left_out == len(rows)


def test_the_order_of_rows_means_nothing_and_the_seed_does() -> None:
    rows = [{**row, "id": str(i)} for i, row in enumerate(rows_of(200, groups=200))]
    shuffled = rows[:]
    random.Random(1).shuffle(shuffled)
    one, other = parted(rows), parted(shuffled)
    assert one.parts == other.parts
    assert parted(rows, seed=1).parts["test"] != one.parts["test"]


def test_strata_have_their_shares() -> None:
    rows = [{"text": f"t{i}", "label": "rare" if i % 20 == 0 else "common", "patient": ""} for i in range(400)]
    found = parted(rows)
    counts = {part: Counter(row["label"] for row in found.parts[part]) for part in PARTS}
    assert counts["test"] == {"common": 57, "rare": 3}
    assert counts["validation"] == {"common": 57, "rare": 3}
    assert counts["train"] == {"common": 266, "rare": 14}


def test_the_sources_own_test_rows_stay_and_their_kin_leave_training() -> None:
    rows = [{"text": f"t{i}", "label": "a", "patient": f"p{i}", "part": "train"} for i in range(40)]
    tested = [
        {"text": "T3", "label": "a", "patient": "x", "part": "test"},
        {"text": "new", "label": "a", "patient": "p5", "part": "test"},
    ]
    found = split(
        rows + tested,
        prompt=lambda r: normalised(r["text"]),
        label=lambda r: r["label"],
        group=lambda r: r["patient"],
        in_test=lambda r: r["part"] == "test",
    )
    assert {row["text"] for row in found.parts["test"]} == {"T3", "new"}
    others = {row["text"] for part in ("train", "validation") for row in found.parts[part]}
    assert "t3" not in others  # a copy of a test row
    assert "t5" not in others  # the same patient as a test row
    assert len(others) == 38
    assert found.left_out == 2


def test_normalised_keeps_numbers_apart() -> None:
    assert normalised("  Fever, HIGH!") == normalised("fever high")
    assert normalised("dose 1.5") != normalised("dose 15")


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match="part would be empty"):
        parted([{"text": "a", "label": "x", "patient": "p"}] * 5)

"""The data of a run: tokenised rows to train on and to hold out, and the hashes that name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qpeft.training.data.examples import data_hash, load_data
from qpeft.training.data.tokenization import tokenize_all

if TYPE_CHECKING:
    from qpeft.training.recipe.config import DataSection

Rows = list[dict[str, list[int]]]


@dataclass(frozen=True)
class RunData:
    """`hashes` has "train" and, with held-out rows, "eval": what `data_hash` says of the examples."""

    train: Rows
    held_out: Rows
    hashes: dict[str, str]


def load_run_data(section: DataSection, tokenizer: Any) -> RunData:
    """Read, check, split and tokenise the rows of a recipe's data section. Raises DataError with every bad row."""
    train, held_out = load_data(section)
    hashes = {"train": data_hash(train)} | ({"eval": data_hash(held_out)} if held_out else {})
    return RunData(
        tokenize_all(train, tokenizer, section.max_length).rows,
        tokenize_all(held_out, tokenizer, section.max_length).rows if held_out else [],
        hashes,
    )

"""The data of a run: tokenised rows to train on and to hold out, and the hashes that name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qpeft.training.data.examples import data_hash, load_data, load_examples
from qpeft.training.data.streaming import StreamedRows
from qpeft.training.data.tokenization import tokenize_all

if TYPE_CHECKING:
    from qpeft.training.recipe.config import DataSection

Rows = list[dict[str, list[int]]]


@dataclass(frozen=True)
class RunData:
    """`train` is a list, or a stream of rows; `hashes` has "train" and, with held-out rows, "eval"."""

    train: Rows | StreamedRows
    held_out: Rows
    hashes: dict[str, str]


def load_run_data(section: DataSection, tokenizer: Any, seed: int = 0) -> RunData:
    """Read, check, split and tokenise the rows of a recipe's data section.

    Args:
        section: the recipe's `data` section.
        tokenizer: the base model's tokenizer.
        seed: of the order of streamed rows; the order of others is the trainer's.

    Raises:
        DataError: with every bad row.
    """
    if section.streaming:
        return _streamed(section, tokenizer, seed)
    train, held_out = load_data(section)
    hashes = {"train": data_hash(train)} | ({"eval": data_hash(held_out)} if held_out else {})
    return RunData(
        tokenize_all(train, tokenizer, section.max_length).rows,
        tokenize_all(held_out, tokenizer, section.max_length).rows if held_out else [],
        hashes,
    )


def _streamed(section: DataSection, tokenizer: Any, seed: int) -> RunData:
    """Training rows that are read on the way; held-out rows are in memory."""
    train = StreamedRows(section, tokenizer, seed)
    hashes = {"train": train.hash()}
    if section.eval is None:
        return RunData(train, [], hashes)
    split = section.eval_split
    held_out = load_examples(section.eval, split=split, name=section.name, format=section.format, system=section.system)
    held_out = held_out[: section.max_eval_rows]
    rows = tokenize_all(held_out, tokenizer, section.max_length).rows
    return RunData(train, rows, hashes | {"eval": data_hash(held_out)})

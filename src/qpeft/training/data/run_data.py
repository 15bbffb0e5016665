"""The data of a run: tokenised rows to train on and to hold out, and the hashes that name them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
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


_kept: tuple[DataSection, Any, RunData, list[logging.LogRecord]] | None = None  # a section, a tokenizer, its rows and warnings


def keep(section: DataSection, tokenizer: Any) -> None:
    """Read rows ahead of the processes that ask for them: forks of this one (prefork.py). Each of these tells the warnings."""
    global _kept
    if section.streaming or (_kept is not None and _kept[0] == section and _kept[1] is tokenizer):
        return
    _kept = None
    with _held_back() as warnings:
        data = load_run_data(section, tokenizer)
    _kept = (section, tokenizer, data, warnings)


class _Held(logging.Handler):
    """Holds what is logged instead of telling it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def _held_back() -> Iterator[list[logging.LogRecord]]:
    """Collect what this package logs about data instead of telling it."""
    handler, logger, disabled = _Held(), logging.getLogger(__package__), logging.root.manager.disable
    logger.addHandler(handler)
    logger.propagate = False
    logging.disable(logging.NOTSET)
    try:
        yield handler.records
    finally:
        logging.disable(disabled)
        logger.propagate = True
        logger.removeHandler(handler)


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
    if _kept is not None and _kept[0] == section and _kept[1] is tokenizer:
        for record in _kept[3]:
            if (logger := logging.getLogger(record.name)).isEnabledFor(record.levelno):
                logger.handle(record)
        return _kept[2]
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

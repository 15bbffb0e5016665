"""Training rows that are read while training goes on, for data larger than memory: JSON Lines, or a data set of the hub.

Rows are shuffled within a buffer. A bad row ends the run when it is reached, with its line.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from qpeft.errors import DataError, MissingDependencyError
from qpeft.training.data.examples import Example, ExampleReader
from qpeft.training.data.json_files import read_jsonl_lines
from qpeft.training.data.problems import Report, Row
from qpeft.training.data.tokenization import tokenize
from qpeft.training.environment import use_cache_without_network

if TYPE_CHECKING:
    from qpeft.training.recipe.config import DataSection

BUFFER = 1000  # rows among which the next one is drawn


class StreamedRows(IterableDataset[dict[str, list[int]]]):
    """Tokenised rows of a recipe's training data, in an order that the seed and the epoch decide.

    Every process iterates over the same rows; accelerate gives each its share.
    """

    def __init__(self, section: DataSection, tokenizer: Any, seed: int) -> None:
        super().__init__()
        self.section, self.tokenizer, self.seed, self.epoch = section, tokenizer, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Another order for another epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        for example in _shuffled(self._examples(), random.Random(f"{self.seed}:{self.epoch}")):
            yield tokenize(example, self.tokenizer, self.section.max_length)

    def _examples(self) -> Iterator[Example]:
        section = self.section
        is_file = Path(section.train).exists()
        report = Report(section.train if is_file else f"{section.train} ({section.train_split})")
        rows = read_jsonl_lines(Path(section.train), report) if is_file else _hub(section, report)
        read = ExampleReader(report, format=section.format, system=section.system)
        for count, row in enumerate(rows):
            if section.max_train_rows is not None and count >= section.max_train_rows:
                return
            example = read(row)
            if example is None:
                raise report.error()
            yield example

    def hash(self) -> str:
        """SHA-256 of a local file's bytes; the name of a hub data set."""
        path = Path(self.section.train)
        if not path.is_file():
            return f"hub:{self.section.train}:{self.section.name or ''}:{self.section.train_split}"
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def _shuffled(examples: Iterable[Example], draw: random.Random) -> Iterator[Example]:
    """Each next example from a buffer of the next `BUFFER` ones."""
    buffer: list[Example] = []
    for example in examples:
        if len(buffer) < BUFFER:
            buffer.append(example)
            continue
        place = draw.randrange(BUFFER)
        buffer[place], example = example, buffer[place]
        yield example
    draw.shuffle(buffer)
    yield from buffer


def _hub(section: DataSection, report: Report) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "train", f"the hub data set {section.train!r}") from error
    use_cache_without_network()
    try:
        rows = datasets.load_dataset(section.train, section.name, split=section.train_split, streaming=True)
        for index, values in enumerate(rows):
            yield Row(index, 0, dict(values))
    except DataError:
        raise
    except Exception as error:  # the library and the network raise errors of many packages
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise report.stop(f"the data set cannot be streamed: {reason}", "a data set of the hub that can be reached") from error

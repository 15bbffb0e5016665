"""Training examples: rows of a file or a hub dataset, checked, in one of three shapes."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.errors import DataError, MissingDependencyError
from qpeft.training.data.files import READERS, read_rows
from qpeft.training.data.problems import Report, Row
from qpeft.training.environment import use_cache_without_network

if TYPE_CHECKING:
    from qpeft.training.recipe.config import DataSection

logger = logging.getLogger(__name__)

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Message:
    """One turn; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """An optional system message, then user and assistant in turn.

    The assistant's turns are learned, except for those among the first `context` messages.
    """

    messages: tuple[Message, ...]
    context: int = 0
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Completion:
    """Plain text that continues plain text; the completion is learned. No chat template is applied."""

    prompt: str
    completion: str
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Text:
    """Plain text, learned whole."""

    text: str
    place: str = field(default="", compare=False)


Example = Conversation | Completion | Text


def content_hash(example: Example) -> str:
    """SHA-256 (hexadecimal) of what the example says, not of where it came from."""
    match example:
        case Conversation(messages, context):
            content: list[Any] = ["conversation", context, *([m.role, m.content] for m in messages)]
        case Completion(prompt, completion):
            content = ["completion", prompt, completion]
        case Text(text):
            content = ["text", text]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def data_hash(examples: Iterable[Example]) -> str:
    """SHA-256 (hexadecimal) of the content hashes in order: equal exactly when the examples and their order are."""
    return hashlib.sha256("\n".join(map(content_hash, examples)).encode()).hexdigest()


class _BadRow(Exception):
    """Error of a row: the field (relative to the row), its value, and the expected type."""

    def __init__(self, field: str, what: str, expected: str) -> None:
        self.field, self.what, self.expected = field, what, expected


def _describe(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, str):
        return "got text" if value.strip() else "empty"
    if isinstance(value, float) and math.isnan(value):
        return "got NaN, a missing value"
    return f"got {type(value).__name__}"


def _string(values: Mapping[str, Any], name: str, at: str = "", *, required: bool = True) -> str:
    """The text in a field. An optional field may be missing or null and then reads as empty."""
    value = values.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value.strip()):
        raise _BadRow(at + name, _describe(value), "text that is not empty" if required else "text")
    if "\x00" in value or _SURROGATE.search(value):
        raise _BadRow(at + name, "holds a NUL or half of a surrogate pair", "valid Unicode text")
    return value


def _turns(value: Any, name: str, role_key: str, content_key: str, roles: Mapping[str, str]) -> list[Message]:
    """A list of messages; roles are translated and checked, not yet their order."""
    if not isinstance(value, list) or not value:
        what = "empty list" if value == [] else _describe(value)
        raise _BadRow(name, what, f"a list of {{{role_key!r}: ..., {content_key!r}: ...}}")
    messages = []
    for index, turn in enumerate(value):
        at = f"{name}.{index}"
        if not isinstance(turn, Mapping):
            raise _BadRow(at, _describe(turn), f"an object with {role_key!r} and {content_key!r}")
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in roles:
            what = f"got {role!r}" if isinstance(role, str) else _describe(role)
            raise _BadRow(f"{at}.{role_key}", what, f"one of {', '.join(roles)}")
        messages.append(Message(roles[role], _string(turn, content_key, f"{at}.", required=roles[role] != "system")))
    return messages


def _ordered(messages: Sequence[Message], name: str, context: int = 0) -> Conversation:
    """Check the order of turns: an optional system message, then user, assistant, user, ... with an assistant turn to learn."""
    first = int(messages[0].role == "system")
    for index, message in enumerate(messages[first:], start=first):
        if message.role == "system":
            raise _BadRow(f"{name}.{index}", "a system message after the first message", "system first or not at all")
        expected = ("user", "assistant")[(index - first) % 2]
        if message.role != expected:
            raise _BadRow(
                f"{name}.{index}", f"a turn of the {message.role}", f"the {expected}'s turn: they alternate, the user first"
            )
    if not any(m.role == "assistant" for m in messages[context:]):
        raise _BadRow(name, "no assistant turn", "at least one to learn from")
    return Conversation(tuple(messages), context)


_ROLES = {role: role for role in ("system", "user", "assistant")}


def _messages(values: Mapping[str, Any]) -> Example:
    return _ordered(_turns(values.get("messages"), "messages", "role", "content", _ROLES), "messages")


def _sharegpt(values: Mapping[str, Any]) -> Example:
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    return _ordered(_turns(values.get("conversations"), "conversations", "from", "value", roles), "conversations")


def _prompt_completion(values: Mapping[str, Any]) -> Example:
    prompt, completion = values.get("prompt"), values.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return Completion(_string(values, "prompt"), _string(values, "completion"))
    before, after = (
        _turns(value, name, "role", "content", _ROLES) if isinstance(value, list) else [Message(role, _string(values, name))]
        for name, value, role in (("prompt", prompt, "user"), ("completion", completion, "assistant"))
    )
    return _ordered(before + after, "prompt + completion", len(before))


def _alpaca(values: Mapping[str, Any]) -> Example:
    system, extra = (_string(values, name, required=False) for name in ("system", "input"))
    messages = [Message("system", system)] if system.strip() else []
    history = values.get("history") or []
    for index, pair in enumerate(history if isinstance(history, list) else [history]):
        if not isinstance(pair, list) or len(pair) != 2:
            raise _BadRow(f"history.{index}", _describe(pair), "a pair [user text, assistant text]")
        turns = dict(zip(("0", "1"), pair, strict=True))
        messages += [Message(role, _string(turns, at, f"history.{index}.")) for role, at in (("user", "0"), ("assistant", "1"))]
    instruction = _string(values, "instruction")
    messages.append(Message("user", f"{instruction}\n\n{extra}" if extra.strip() else instruction))
    messages.append(Message("assistant", _string(values, "output")))
    return _ordered(messages, "history")


def _text(values: Mapping[str, Any]) -> Example:
    return Text(_string(values, "text"))


FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Example]]] = {
    "messages": (("messages",), _messages),
    "sharegpt": (("conversations",), _sharegpt),
    "prompt_completion": (("prompt", "completion"), _prompt_completion),
    "alpaca": (("instruction", "output"), _alpaca),
    "text": (("text",), _text),
}
"""Name -> (required fields, reader). `auto` takes the first whose required fields the first row has; other fields are ignored."""


def load_examples(
    source: str,
    *,
    split: str = "train",
    name: str | None = None,
    format: str = "auto",
    system: str | None = None,
    limit: int | None = None,
) -> list[Example]:
    """The first `limit` (default all) rows of a local file, or of the split of a hub dataset with subset `name`, in order.

    `format` is one of `FORMATS` or "auto". `system` is put before conversations that have no system message.

    Raises:
        DataError: naming file, line (row index for a hub dataset), field and expectation of each bad row, 20 shown, all counted.
        MissingDependencyError: without the package that reads the source.
    """
    is_file = Path(source).exists() or Path(source).suffix.lower() in READERS
    report = Report(source if is_file else f"{source} ({split})")
    rows = (read_rows(source) if is_file else _hub_rows(source, name, split, report))[:limit]
    read = ExampleReader(report, format=format, system=system)
    examples = [example for row in rows if (example := read(row)) is not None]
    if report.count:
        raise report.error()
    return examples


class ExampleReader:
    """Turns rows into examples; what is wrong with a row goes into `report`, and the reader returns None for it.

    The first row decides the format where it is "auto".
    """

    def __init__(self, report: Report, *, format: str = "auto", system: str | None = None) -> None:
        if format != "auto" and format not in FORMATS:
            raise DataError(f"got {format!r}", field="data.format", expected=f"auto or one of {', '.join(FORMATS)}")
        self.report, self.format, self.system = report, format, system

    def __call__(self, row: Row) -> Example | None:
        if self.format == "auto":
            self.format = _detect(row, self.report)
        try:
            example = FORMATS[self.format][1](row.values)
        except _BadRow as bad:
            at = bad.field if row.line else f"row {row.index}.{bad.field}"
            self.report.add(bad.what, bad.expected, line=row.line, field=at)
            return None
        place = f"{self.report.file}:{row.line}" if row.line else f"{self.report.file} row {row.index}"
        return _finished(example, self.system, place)


def _finished(example: Example, system: str | None, place: str) -> Example:
    match example:
        case Conversation(messages, context):
            if system and messages[0].role != "system":
                return Conversation((Message("system", system), *messages), context + bool(context), place)
            return Conversation(messages, context, place)
        case Completion(prompt, completion):
            made: Example = Completion(prompt, completion, place)
        case Text(text):
            made = Text(text, place)
    if system:
        raise DataError("a system message was given for rows of plain text", field="data.system", expected="conversations")
    return made


def _detect(row: Row, report: Report) -> str:
    for name, (required, _) in FORMATS.items():
        if all(key in row.values for key in required):
            return name
    seen = ", ".join(map(repr, list(row.values)[:12])) or "nothing"
    known = "; ".join(f"{name}: {' + '.join(required)}" for name, (required, _) in FORMATS.items())
    raise report.stop(f"the first row has {seen}", f"the fields of a format ({known})", line=row.line, hint="rename the fields")


def _hub_rows(dataset: str, name: str | None, split: str, report: Report) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "train", f"the hub dataset {dataset!r}") from error
    use_cache_without_network()
    try:
        loaded = datasets.load_dataset(dataset, name, split=split)
        rows = [Row(index, 0, dict(values)) for index, values in enumerate(loaded)]
    except Exception as error:  # the library and the network raise errors of many packages
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "check data.train, data.name and data.train_split (or eval, eval_split), or give a local file"
        raise report.stop(f"the dataset cannot be loaded: {reason}", "a dataset id of the hub", hint=hint) from error
    if not rows:
        raise report.stop("the split holds no rows", "at least one row")
    return rows


def split(examples: Sequence[Example], eval_size: int, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """(train, eval): `eval_size` distinct examples for eval, the others for train, both in the order given.

    An example is chosen by the hash of its content and the seed, so the choice does not depend on the order of rows; copies
    of a chosen example are left out of train, so that none is on both sides. Raises DataError if nothing would be left.
    """
    hashes = [content_hash(example) for example in examples]
    distinct = sorted(dict.fromkeys(hashes), key=lambda h: hashlib.sha256(f"{seed}:{h}".encode()).digest())
    if not 0 < eval_size < len(distinct):
        raise DataError(
            f"got {eval_size}",
            field="data.eval_size",
            expected=f"1 to {len(distinct) - 1}: there are {len(distinct)} distinct rows",
            hint="lower data.eval_size or give data.eval",
        )
    chosen = set(distinct[:eval_size])
    train = [example for example, h in zip(examples, hashes, strict=True) if h not in chosen]
    held_out = {h: example for example, h in zip(reversed(examples), reversed(hashes), strict=True) if h in chosen}
    return train, [held_out[h] for h in dict.fromkeys(hashes) if h in chosen]


def load_data(section: DataSection) -> tuple[list[Example], list[Example]]:
    """(train, eval) of a recipe's data section; eval is empty if the recipe names none.

    `max_train_rows` and `max_eval_rows` keep the first rows of a file. Of rows split off by `eval_size` the first `max_eval_rows`
    in the order of their hash are kept. A file sorted by its answers, of which the first rows show one answer alone, is named
    in a warning; so is the number of eval rows that are also in train.
    """
    load = functools.partial(load_examples, name=section.name, format=section.format, system=section.system)
    if section.eval_size is not None:
        train, held_out = split(load(section.train, split=section.train_split), section.eval_size, section.split_seed)
        if section.max_eval_rows is not None and section.max_eval_rows < len(held_out):
            held_out = split(held_out, section.max_eval_rows, section.split_seed)[1]
        return _first(train, section.max_train_rows, "data.max_train_rows"), held_out
    train = _first(load(section.train, split=section.train_split), section.max_train_rows, "data.max_train_rows")
    if section.eval is None:
        return train, []
    held_out = _first(load(section.eval, split=section.eval_split), section.max_eval_rows, "data.max_eval_rows")
    common = set(map(content_hash, train)) & set(map(content_hash, held_out))
    if common:
        logger.warning(
            "%d rows of the eval data are also in the training data: held-out numbers will look better than they are", len(common)
        )
    return train, held_out


def _first(examples: list[Example], limit: int | None, name: str) -> list[Example]:
    """The first rows, with a warning where they have one answer alone and the others have other answers too."""
    if limit is None or limit >= len(examples):
        return examples
    kept = examples[:limit]
    answers = {_answer(example) for example in kept}
    if len(kept) > 9 and len(answers) == 1 and any(_answer(example) not in answers for example in examples[limit:]):
        answer = answers.pop()[:40]
        logger.warning("%s = %d: these first rows all have the answer %r, later ones do not; shuffle the file", name, limit, answer)
    return kept


def _answer(example: Example) -> str:
    """The last trained text of an example."""
    match example:
        case Conversation(messages):
            return messages[-1].content
        case Completion(_, completion):
            return completion
        case Text(text):
            return text

"""A YAML file as plain data, in which every value knows the line or the `--set` option it came from.

The text is read by the YAML 1.2 core schema: `1e-4` is a number, `no` and `on` are text, and only `true` and `false` are
booleans. Keys are text and appear once, numbers are finite, tags beyond the schema are refused, and aliases may expand to
`MAX_EXPANDED` characters at most.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qpeft.errors import ConfigError

MAX_BYTES = 2**20
MAX_EXPANDED = 4 * MAX_BYTES
NODE_SIZE = 32  # what a node counts for besides its characters

_TAG = "tag:yaml.org,2002:"
KeyPath = tuple[str | int, ...]

# tag, pattern, first characters ("" is the empty scalar); an integer is also of the float pattern, so it comes first
_CORE_SCHEMA: tuple[tuple[str, str, list[str]], ...] = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {}  # noqa: RUF012


for _class in (_Loader, _Dumper):
    for _name, _pattern, _first in _CORE_SCHEMA:
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})$"), _first)


def dump_yaml(value: Any) -> str:
    """YAML text that `read_yaml` reads back as an equal value; keys keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def show(value: Any) -> str:
    """A value the way a recipe writes it, for error messages; at most about 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()
    return text if len(text) <= 80 else text[:77] + "..."


@dataclass
class RecipeSource:
    """Plain data and its origin.

    `value` is the content, which sits at the dotted path `root` of the recipe; `places` maps a key path to (file or option,
    line); `problems` holds what was wrong but did not stop the reading.
    """

    file: str
    root: str = ""
    value: Any = None
    places: dict[KeyPath, tuple[str, int]] = field(default_factory=dict)
    problems: list[ConfigError] = field(default_factory=list)

    def problem(self, path: KeyPath, what: str, expected: str = "", hint: str | None = None) -> ConfigError:
        """A ConfigError at the place of `path`, or of the nearest parent that is in the file.

        Args:
            path: key path in the recipe.
            what: what is wrong.
            expected: what was expected.
            hint: what to do about it.
        """
        near = path
        while near and near not in self.places:
            near = near[:-1]
        file, line = self.places.get(near, (self.file, 0))
        return self.error(what, file=file, line=line, path=path, expected=expected, hint=hint)

    def error(
        self, what: str, *, file: str = "", line: int = 0, path: KeyPath = (), expected: str = "", hint: str | None = None
    ) -> ConfigError:
        """A ConfigError at a known line.

        Args:
            what: what is wrong.
            file: the file or `--set` option; default the source's file.
            line: line in the file, from 1; 0 if it is not known.
            path: key path below the source's root.
            expected: what was expected.
            hint: what to do about it.
        """
        dotted = ".".join(filter(None, (self.root, *map(str, path))))
        return ConfigError(what, file=file or self.file, line=line, field=dotted, expected=expected, hint=hint)

    def override(self, option: str) -> None:
        """Apply one `dotted.path=value`; the value is YAML. Sections that are missing are made, list items are not."""
        name, equals, text = option.partition("=")
        origin = f"--set {option}"
        keys = name.strip().split(".")
        if not equals or not all(keys):
            self.problems.append(ConfigError("not an override", file=origin, expected="--set section.name=value"))
            return
        try:
            new = _compose(text, RecipeSource(origin, root=name))
        except ConfigError as error:
            self.problems.append(error)
            return
        self.problems += new.problems
        self.value = {} if self.value is None else self.value
        parent = self.value
        path: KeyPath = ()
        for position, key in enumerate(keys):
            step = _step(parent, key)
            if step is None:
                where = ".".join(keys[:position]) or "the recipe"
                if isinstance(parent, list):
                    what, expected = f"{where} is a list of {len(parent)} and has no item {key!r}", "an index from 0"
                else:
                    what, expected = f"{where} holds {show(parent)}", "a section or list to set something in"
                self.problems.append(ConfigError(what, file=origin, field=name, expected=expected))
                return
            path = (*path, step)
            if position == len(keys) - 1:
                parent[step] = new.value
            elif isinstance(parent, dict) and parent.get(step) is None:
                parent[step] = {}
            parent = parent[step]
        self.places = {known: place for known, place in self.places.items() if known[: len(path)] != path}
        self.places[path] = (origin, 0)


def _step(parent: Any, key: str) -> str | int | None:
    """`key` as an index into `parent`; None where there is no such item."""
    if isinstance(parent, dict):
        return key
    if isinstance(parent, list) and key.isdecimal() and key.isascii() and len(key) < 10 and int(key) < len(parent):
        return int(key)
    return None


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> RecipeSource:
    """Read a file and apply overrides in order.

    Smaller problems, such as a duplicate key or a bad override, are collected in the source's `problems`.

    Args:
        path: the file.
        overrides: `key=value` options.

    Raises:
        ConfigError: the file cannot be read as YAML.
    """
    file = str(path)
    source = _compose(_read_text(Path(path)), RecipeSource(file))
    for option in overrides:
        source.override(option)
    return source


def _read_text(path: Path) -> str:
    file = str(path)
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "no such file" if not path.exists() else "not a regular file"
            raise ConfigError(what, file=file, expected="a YAML file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ConfigError(f"{size} bytes", file=file, expected=f"a recipe of at most {MAX_BYTES} bytes")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cannot be read: {error}", file=file, expected="a readable YAML file") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise ConfigError(what, file=file, line=line, expected="UTF-8 text", hint="save the file as UTF-8") from error


def _compose(text: str, source: RecipeSource) -> RecipeSource:
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            source.value = _Converter(source).convert(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = f"not YAML: {error.problem or error.context}"
        hint = "indent with spaces, not tabs" if "\\t" in what else None
        raise source.error(what, line=mark.line + 1 if mark else 0, hint=hint) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise source.error(f"not YAML: character U+{ord(text[error.position]):04X} is not allowed", line=line) from error
    except RecursionError as error:
        raise source.error("nested too deeply", expected="a few levels") from error
    except (ValueError, OverflowError) as error:  # PyYAML lets some through, for example an escape beyond Unicode
        if isinstance(error, ConfigError):
            raise
        raise source.error(f"not YAML: {error}") from error
    return source


class _Converter:
    """Turns a node tree into plain data and notes the places; aliases are expanded, so their size is counted again each time."""

    def __init__(self, source: RecipeSource) -> None:
        self.source, self.size, self.open = source, 0, set[int]()

    def convert(self, node: yaml.Node, path: KeyPath) -> Any:
        line = node.start_mark.line + 1
        self.source.places.setdefault(path, (self.source.file, line))
        self.size += NODE_SIZE + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        if self.size > MAX_EXPANDED:
            raise self.source.error("aliases expand without bound", line=line, expected=f"at most {MAX_EXPANDED} characters")
        if id(node) in self.open:
            raise self.source.error("an alias refers to what holds it", line=line, expected="no cycle")
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.ScalarNode):
                return self.scalar(node, path)
            kind = "map" if isinstance(node, yaml.MappingNode) else "seq"
            if node.tag != _TAG + kind:
                self.report(path, line, f"tag {node.tag!r} is not supported", "a plain mapping or list")
            if kind == "map":
                return self.mapping(node, path)
            return [self.convert(item, (*path, index)) for index, item in enumerate(node.value)]
        finally:
            self.open.discard(id(node))

    def report(self, path: KeyPath, line: int, what: str, expected: str) -> None:
        self.source.problems.append(self.source.error(what, line=line, path=path, expected=expected))

    def mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _TAG + "merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.report(path, line, "a key is a list or mapping", "text")
                continue
            key = key_node.value
            if not key.isprintable():
                self.report(path, line, f"key {show(key)} holds characters that cannot be printed", "plain text")
            elif key_node.tag != _TAG + "str":
                self.report((*path, key), line, f"key {key!r} is not text", f'text; quote it: "{key}"')
            elif key in values:
                first = self.source.places[(*path, key)][1]
                self.report((*path, key), line, f"duplicate key, first on line {first}", "each key once")
            else:
                self.source.places[(*path, key)] = (self.source.file, line)
                values[key] = self.convert(value_node, (*path, key))
        for other in merged:  # a key written here wins over a merged one, an earlier merged mapping over a later one
            if not isinstance(other, yaml.MappingNode):
                self.report((*path, "<<"), other.start_mark.line + 1, "merge of something else than a mapping", "<<: *name")
                continue
            for key, value in self.convert(other, (*path, "<<")).items():
                if key not in values:
                    values[key] = value
                    self.source.places[(*path, key)] = (self.source.file, other.start_mark.line + 1)
        return values

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text, kind, line = node.value, node.tag.removeprefix(_TAG), node.start_mark.line + 1
        try:
            if kind in ("str", "merge"):
                text.encode()
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text, 0 if text[:2] in ("0o", "0x") else 10)
            if kind == "float":
                number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
                if math.isfinite(number):
                    return number
                self.report(path, line, f"got {text}", "a finite number")
                return 0.0
        except (ValueError, KeyError):
            expected = "valid Unicode" if kind in ("str", "merge") else f"a value of the tag !!{kind} of at most 4000 characters"
            self.report(path, line, f"got {show(text[:40])}", expected)
            return None
        self.report(path, line, f"tag {node.tag!r} is not supported", "null, true, false, a number or text")
        return None


def read_settings(options: Sequence[str], root: str) -> dict[str, Any]:
    """A mapping from `key=value` options alone.

    Args:
        options: the options, values in YAML.
        root: key path of the mapping in the recipe, for messages.

    Raises:
        ConfigError: with every problem.
    """
    source = RecipeSource("--set", root=root, value={})
    for option in options:
        source.override(option)
    if source.problems:
        raise ConfigError.collect(source.problems)
    values: dict[str, Any] = source.value
    return values

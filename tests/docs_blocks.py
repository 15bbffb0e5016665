"""The fenced blocks of a page of documentation, with the mark above each."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Block:
    """A fenced block: `marked` is what stands above it, `run` or `not run: WHY`."""

    line: int
    language: str
    text: str
    marked: str

    @property
    def not_run(self) -> bool:
        return self.marked.startswith("not run: ")


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in these languages."""
    text = page.read_text(encoding="utf-8")
    fence = r"^ *(?:<!-- (?P<mark>run|not run: [^\n]+?) -->\n *)?```(?P<language>\w*)\n(?P<text>.*?)^ *```$"
    found = [
        Block(text.count("\n", 0, m.start()) + 1, m["language"], textwrap.dedent(m["text"]), m["mark"] or "")
        for m in re.finditer(fence, text, re.MULTILINE | re.DOTALL)
    ]
    return [block for block in found if block.language in languages]

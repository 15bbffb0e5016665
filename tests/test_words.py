"""Code, docs, recipes and pictures use the field's words; phrases and names of our own are held out.

docs/glossary.md has the words that stay.

Files that still wait for their turn are listed in `tests/words_not_done.txt`, which only gets shorter;
`python -m tests.test_words` prints what it has to hold.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_DONE = ROOT / "tests" / "words_not_done.txt"
KINDS = {".py", ".md", ".yaml", ".yml", ".jinja", ".c", ".h", ".inc", ".toml", ".rst"}
PLACES = ("src", "docs", "benchmarks", "recipes", "deploy", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")

_COUNTED = "circuits|nats|shots|tokens|rows|numbers|parameters|ms|points|evaluations|operations|samples|bytes|programs|jobs|steps"
_PER = "step|token|row|module|circuit|layer|job|sample|epoch|task"
# what must not stand there -> what the field says
PHRASES = {
    r"\bbeside\b": "vs. (a comparison), next to (a place), in addition to",
    rf"\b(?:{_COUNTED}) an? (?:{_PER})\b": "per step, per token (nats/token)",
    r"\bchapters? of diagnos[ei]s\b": "ICD-10 chapters",
    r"\bmade again\b": "rerun",
    r"\bways? out of an adapter\b": "export",
    r"\b(?:says?|said|saying) so\b": "what is said, by name (raises MissingDependencyError, is labelled synthetic)",
    r"\blevel with\b": "a number, and what it is compared with",
    r"\bin small company\b": "with few others (a number)",
    r"\bin that place everywhere\b": "on the same layers",
    r"\b(?:can(?:not)? be|nothing that can be|be) seen\b": "no measurable effect (with the interval)",
    r"\bthan (?:its )?seeds (?:do|differ)\b|\bby more than seeds\b": "a 95% interval",
    r"\bin sight\b": "chosen on these test rows",
    r"\bhow-manieth\b": "index",
    r"\b(?:lattice surrogate|lattice of (?:inputs|points|values))\b": "grid surrogate, Fourier grid",
    r"\bturned (?:blocks|inputs|pairs)\b|\b(?:blocks|pairs) of \w+ (?:inputs )?turned\b": "rotated input blocks",
    r"\bwords? of (?:the )?(?:Z|Pauli)": "Pauli string",
    r"\bQCORE (?:matrix|side)\b": "frozen-frame core, one-sided LoRA",
    r"\b(?:classical )?twins?\b": "control (a model), copy (an object)",
    r"\blearnt\b": "learned",
}
NAMES = {
    "write_whole": "atomic_write",
    "alone": "lock_run_dir",
    "claim": "init_run_dir",
    "twin": "copy_sharing_weights",
    "Watch": "ParameterVersion",
    "_borrowed": "shared",
    "Kit": "a name that says what it holds",
    "Lose": "ExpireLease",
    "News": "VendorTaskUpdate",
    "Desk": "WorkerContext",
    "stir": "randomize",
    "judge": "score",
    "cure": "hint",
}
MODULES = {"trees", "wide", "rates", "adapted", "transfer", "harness", "kit", "desk"}


def _files() -> list[Path]:
    found = [ROOT / place for place in PLACES]
    found = [path for place in found for path in ([place] if place.is_file() else sorted(place.rglob("*")))]
    made = {"_build", "project"}  # by the site
    return [path for path in found if path.suffix in KINDS and not made & set(path.parts) and "egg-info" not in str(path)]


def _not_done() -> set[str]:
    return {line for line in NOT_DONE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")}


def _defined(source: str) -> set[str]:
    """Names that a module gives to its functions, classes and parameters."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def problems(path: Path) -> list[str]:
    """`line: what stands there -> what to write` for each banned phrase and name in a file."""
    text = path.read_text(encoding="utf-8")
    found = []
    for pattern, plain in PHRASES.items():
        flexible = pattern.replace(" ", r"[\s#*>]+")  # a phrase may go over the end of a line, also of a comment
        for match in re.finditer(flexible, text, re.IGNORECASE):
            found.append(f"{text.count(chr(10), 0, match.start()) + 1}: {' '.join(match.group().split())} -> {plain}")
    if path.suffix == ".py":
        found += [f"{name} -> {NAMES[name]}" for name in sorted(_defined(text) & set(NAMES))]
        found += [f"module {path.stem}"] if path.stem in MODULES and "benchmarks" not in path.parts else []
    return found


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_fields_words(path: Path) -> None:
    if str(path.relative_to(ROOT)) in _not_done():
        pytest.skip("listed in tests/words_not_done.txt")
    assert not problems(path)


def test_the_phrases_are_found_where_they_stand(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("QTHA beside LoRA: 0.3 nats\na token; 81 circuits a step. The twin cannot be seen.\n", encoding="utf-8")
    assert [line.split(" ->")[0] for line in problems(page)] == [
        "1: beside",
        "1: nats a token",
        "2: circuits a step",
        "2: cannot be seen",
        "2: twin",
    ]
    module = tmp_path / "kit.py"
    module.write_text("class Desk:\n    def judge(self, cure: int) -> None: ...\n", encoding="utf-8")
    assert problems(module) == ["Desk -> WorkerContext", "cure -> hint", "judge -> score", "module kit"]


if __name__ == "__main__":
    print("\n".join(str(path.relative_to(ROOT)) for path in _files() if problems(path)))

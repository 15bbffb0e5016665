"""The text on which a compressed model's perplexity is measured and mended: `python -m benchmarks.recovery_rows`.

Answers of `recipes/data/alpaca-demo` of at least 50 words, as plain text without chat template. The compression's inputs are the
first 160 training rows (benchmarks/compressed_model.py): no text of theirs is among the rows to tune on or to test on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

CALIBRATION = 160  # the first training rows, which the compression has seen
WORDS = 50  # of an answer: more than a row's tokens, so that rows have equal length
TUNING = 48


def write(source: Path, out: Path) -> dict[str, int]:
    """Make train.jsonl, validation.jsonl and test.jsonl. The number of rows of each."""
    seen, test = _texts(source / "train.jsonl"), _texts(source / "test.jsonl")
    rows = [text for text in seen[CALIBRATION:] if _long(text)]
    rows.sort(key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    parts = {"train": rows[TUNING:], "validation": rows[:TUNING], "test": [text for text in test if _long(text)]}
    out.mkdir(parents=True, exist_ok=True)
    for part, texts in parts.items():
        (out / f"{part}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return {part: len(texts) for part, texts in parts.items()}


def _texts(file: Path) -> list[str]:
    return [json.loads(line)["output"] for line in file.read_text(encoding="utf-8").splitlines()]


def _long(text: str) -> bool:
    return len(text.split()) >= WORDS


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("recipes/data/alpaca-demo"))
    parser.add_argument("--out", type=Path, default=Path("data/recovery-text"))
    arguments = parser.parse_args(given)
    print(write(arguments.source, arguments.out))


if __name__ == "__main__":
    main()

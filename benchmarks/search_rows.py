"""The rows of the second study's search: `python -m benchmarks.search_rows`, after `qpeft data prepare icd10-chapter`.

Short ICD-10-CM diagnoses (2 to 7 words) with one word for the chapter, from the training and validation parts alone. Of each
chapter 32 training and 7 validation rows, those of smallest SHA-256. Short rows make a training step cheap on one slow core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path

WORDS = {  # the first letters of a chapter's title, and its word
    "Injury, p": "Injury",
    "Diseases of the musc": "Muscle",
    "External": "Cause",
    "Diseases of the eye": "Eye",
    "Neop": "Tumor",
    "Factors": "Health",
    "Pregn": "Pregnancy",
    "Diseases of the circ": "Heart",
    "Certain inf": "Infection",
    "Diseases of the skin": "Skin",
    "Diseases of the dig": "Digestion",
    "Congenital": "Congenital",
    "Mental": "Mind",
    "Diseases of the genito": "Kidney",
    "Endocrine": "Hormone",
    "Diseases of the nerv": "Nerve",
    "Symptoms": "Symptom",
    "Diseases of the ear": "Ear",
    "Certain conditions": "Newborn",
    "Diseases of the resp": "Lung",
    "Diseases of the blood": "Blood",
}
ROWS = {"train": 32, "validation": 7}  # per chapter


def word_of(title: str) -> str | None:
    """The word of a chapter; None for chapters without one (codes for special purposes)."""
    return next((word for start, word in WORDS.items() if title.startswith(start)), None)


def write(source: Path, out: Path) -> None:
    """Make train.jsonl and validation.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    for part, most in ROWS.items():
        rows = [json.loads(line) for line in (source / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if 2 <= len(row["values"]["text"].split()) <= 7]
        rows.sort(key=lambda row: hashlib.sha256(row["values"]["text"].encode()).hexdigest())
        seen: Counter[str] = Counter()
        lines = []
        for row in rows:
            word = word_of(row["label"])
            if word is not None and seen[word] < most:
                seen[word] += 1
                lines.append(json.dumps({"prompt": f"{row['values']['text']} =>", "completion": f" {word}"}) + "\n")
        (out / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("data/icd10-chapter"))
    parser.add_argument("--out", type=Path, default=Path("data/icd10-words"))
    arguments = parser.parse_args(given)
    write(arguments.source, arguments.out)


if __name__ == "__main__":
    main()

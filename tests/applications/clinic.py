"""A made-up clinic's table: rows whose label follows a known rule."""

from __future__ import annotations

import csv
import random
from pathlib import Path

COLUMNS = ("patient", "visit_age", "smoker", "Glucose", "note", "ill")


def clinic_rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows in which high glucose, or smoking above 60, means ill; two visits of each patient, some glucose values missing."""
    rng = random.Random(seed)
    rows = []
    for index in range(n):
        age, smoker, glucose = rng.randint(20, 80), rng.choice(["y", "n"]), rng.randint(60, 200)
        ill = "yes" if glucose > 130 or (smoker == "y" and age > 60) else "no"
        missing = index % 10 == 0
        values = (f"p{index // 2}", age, smoker, "" if missing else glucose, f"seen by doctor {index}", ill)
        rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return rows


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path

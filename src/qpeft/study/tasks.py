"""The rows of a study's task: prepared from the catalogue, split, and checked against their SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from qpeft.applications.task import FILE
from qpeft.errors import DataError
from qpeft.files import replace_folder
from qpeft.study.plan import Part, TaskSection

PARTS: tuple[Part, ...] = ("train", "validation", "test")


def prepare(task: TaskSection, parts: tuple[Part, ...] = PARTS) -> None:
    """Write the task's rows, if they are not there, and check them.

    Args:
        task: a task of a plan.
        parts: the parts that the study reads.

    Raises:
        DataError: a part is missing or is not the registered one; rows to score have no answers to choose among.
    """
    folder = Path(task.folder)
    if task.prepare and not folder.exists():
        from qpeft.applications.data_sets import find
        from qpeft.applications.preparation.prepare import prepare as write

        write(find(task.prepare), folder)
    if task.split and not folder.exists():
        _split(Path(task.split), folder)
    for part in parts:
        file = folder / f"{part}.jsonl"
        if not file.is_file():
            raise DataError(
                f"task {task.name} has no {part} rows",
                file=str(file),
                expected=f"{', '.join(parts)} rows",
                hint="`split: FOLDER` in the plan sets validation rows aside",
            )
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if task.sha256.get(part, found) != found:
            raise DataError(f"the {part} rows have SHA-256 {found}", file=str(file), expected=f"the plan's {task.sha256[part]}")
    if task.score_rows and not (folder / FILE).is_file():
        raise DataError(
            f"task {task.name} has score_rows, and its rows no answers to choose among",
            file=str(folder / FILE),
            expected="a data set of `qpeft data prepare`",
            hint="score_rows: 0 compares by loss alone",
        )
    if task.unrelated and not Path(task.unrelated).is_file():
        raise DataError(f"task {task.name} has no unrelated text", file=task.unrelated, expected="rows as in test.jsonl")


def _split(source: Path, folder: Path) -> None:
    """Set an eighth of a folder's training rows aside for validation: those of smallest SHA-256."""
    rows = (source / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    order = sorted(rows, key=lambda row: hashlib.sha256(row.encode()).hexdigest())
    aside = set(order[: len(rows) // 8])
    with replace_folder(folder) as made:
        (made / "validation.jsonl").write_text("".join(row for row in rows if row in aside), encoding="utf-8")
        (made / "train.jsonl").write_text("".join(row for row in rows if row not in aside), encoding="utf-8")
        (made / "test.jsonl").write_text((source / "test.jsonl").read_text(encoding="utf-8"), encoding="utf-8")

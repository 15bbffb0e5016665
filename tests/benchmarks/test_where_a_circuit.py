"""The page on where a circuit could matter: its tables and pictures come from the committed records alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.where_a_circuit import PAGE, fill, write

from benchmarks import few_shot, recovery


def test_the_committed_page_is_what_its_records_say(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    shutil.copyfile(PAGE, page)
    write(page, tmp_path)
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
    made = page.read_text(encoding="utf-8")
    for name in ("mend", "chip", "few"):
        picture = tmp_path / f"where-a-circuit-{name}.png"
        assert (f"../images/{picture.name}" in made) == picture.exists()
    if "where-a-circuit-few.png" in made:
        assert made.count("| circuit |") == len(few_shot.SIZES)
        assert all(f"| {arm} |" in made for arm in (*few_shot.ARMS, *recovery.ARMS))


def test_only_what_is_between_the_marks_is_replaced() -> None:
    text = "a\n<!-- x -->\nold\n<!-- end -->\nb\n<!-- y -->\nkept\n<!-- end -->\n"
    assert fill(text, "x", ["new", ""]) == text.replace("old", "new")

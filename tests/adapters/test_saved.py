"""Damaged and foreign adapter folders: one line each, with the file's name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qpeft.adapters.saved import CONFIG, WEIGHTS, check_saved
from qpeft.errors import AdapterError

GOLDEN = Path(__file__).parent.parent / "golden" / "adapters" / "cayley"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (CONFIG, Path.unlink, "a file is missing"),
        (WEIGHTS, Path.unlink, "a file is missing"),
        (CONFIG, cut, "is not JSON"),
        (WEIGHTS, cut, "is truncated or no safetensors file"),
        (WEIGHTS, lambda file: file.write_bytes(b""), "is truncated or no safetensors file"),
        (WEIGHTS, lambda file: file.write_text("<html>404</html>"), "is truncated or no safetensors file"),
        (CONFIG, lambda file: file.write_text('{"model_type": "llama"}'), "has no peft_type"),
        (CONFIG, lambda file: file.write_text("[1]"), "has no peft_type"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, name: str, damage: Callable[[Path], object], words: str) -> None:
    shutil.copytree(GOLDEN, tmp_path / "adapter")
    check_saved(tmp_path / "adapter")
    damage(tmp_path / "adapter" / name)
    with pytest.raises(AdapterError, match=words) as refused:
        check_saved(tmp_path / "adapter")
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)

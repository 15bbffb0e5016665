"""Damaged and foreign adapter folders: one line each, with the file's name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

import qpeft
from qpeft.adapters.peft.load import load_saved
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
        (WEIGHTS, lambda file: save_file({"a": torch.tensor([1.0, float("nan")])}, file), "not finite, the first in a"),
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


def _saved(folder: Path, **settings: object) -> Path:
    config = qpeft.CayleyConfig(block_size=2, target_modules=["first"], **settings)
    get_peft_model(Net(), config).save_pretrained(folder)
    return folder


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.filterwarnings("error")
def test_what_does_not_fit_is_one_line_with_the_file(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "whole")
    assert load_saved(Net(), folder).active_adapter == "default"
    with pytest.raises(AdapterError, match="size mismatch") as refused:
        load_saved(Net(width=16), folder)
    assert str(folder / WEIGHTS) in str(refused.value)
    assert "\n" not in str(refused.value)

    foreign = {f"base_model.model.layer.{i}.lora_A.weight": torch.zeros(2, 2) for i in range(2)}
    save_file(foreign, folder / WEIGHTS)
    with pytest.raises(AdapterError, match=r"lacks weights of the adapter, the first \S+") as refused:
        load_saved(Net(), folder)
    assert str(folder / WEIGHTS) in str(refused.value)

    for change, words in (('"CAYLEY"', "not known here: 'CAYLEI'"), ('"block_size": 2', "block_size must be a whole number")):
        other = _saved(tmp_path / words[:5])
        (other / CONFIG).write_text((other / CONFIG).read_text().replace(change, change.replace('Y"', 'I"').replace("2", '"x"')))
        with pytest.raises(AdapterError, match=words) as refused:
            load_saved(Net(), other)
        assert str(other / CONFIG) in str(refused.value)

    elsewhere = _saved(tmp_path / "elsewhere")
    config = (elsewhere / CONFIG).read_text().replace('"first"', '"nowhere"')
    (elsewhere / CONFIG).write_text(config)
    with pytest.raises(AdapterError, match="nowhere") as refused:
        load_saved(Net(), elsewhere)
    assert str(elsewhere / CONFIG) in str(refused.value)

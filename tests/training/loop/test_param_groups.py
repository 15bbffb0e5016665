"""Learning rates of parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from qpeft.errors import ConfigError
from qpeft.training.loop.param_groups import scale_rates
from qpeft.training.loop.run import train
from qpeft.training.recipe.config import load_recipe


def _net() -> nn.ModuleDict:
    net = nn.ModuleDict({"circuit": nn.Linear(2, 2), "core": nn.Linear(2, 2), "frame": nn.Linear(2, 2)})
    return net.requires_grad_(True)


def _rates(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[str, float]:
    by_id = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in net.named_parameters() if p.requires_grad}


def test_each_parameter_has_the_first_factor_whose_pattern_is_in_its_name() -> None:
    net = _net()
    net["frame"].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    scale_rates(optimizer, net.named_parameters(), {r"circuit\.weight": 10.0, "circuit": 0.5})
    expected = {"circuit.weight": 1e-2, "circuit.bias": 5e-4, "core.weight": 1e-3, "core.bias": 1e-3}
    assert _rates(optimizer, net) == pytest.approx(expected)


def test_a_schedule_moves_all_parts_alike() -> None:
    net = _net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scale_rates(optimizer, net.named_parameters(), {"core": 4.0})
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    rates = _rates(optimizer, net)
    assert (rates["core.weight"], rates["circuit.weight"]) == (2.0, 0.5)


def test_a_pattern_without_a_trained_parameter_is_an_error() -> None:
    net = _net()
    net["frame"].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    with pytest.raises(ConfigError, match="learning_rate_factors"):
        scale_rates(optimizer, net.named_parameters(), {"frame": 2.0})


def test_a_part_with_a_tiny_factor_stays_where_it_was(recipe: Path, tmp_path: Path) -> None:
    """LoRA's second factor starts at zero: what it is after a run is how far it went."""
    adapter, steps = "adapter={peft_type: LORA, r: 2, target_modules: [q_proj]}", "training.max_steps=3"
    moved = {}
    for factor in (1.0, 1e-6):
        folder = tmp_path / str(factor)
        train(load_recipe(recipe, [adapter, steps, f"training.learning_rate_factors={{lora_B: {factor}}}"]), folder)
        weights = load_file(folder / "adapter" / "adapter_model.safetensors")
        moved[factor] = max(w.abs().max().item() for name, w in weights.items() if "lora_B" in name)
    assert 0 < moved[1e-6] < 1e-5 * moved[1.0]


@pytest.mark.parametrize(("value", "words"), [("{'(': 2}", "regular expression"), ("{core: 0}", "greater than 0")])
def test_recipes_are_checked(recipe: Path, value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe(recipe, [f"training.learning_rate_factors={value}"])

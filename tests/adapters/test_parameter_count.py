"""Counting without building a model, and settings that meet a budget: against counts on whole models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qpeft.adapters.base import AdapterConfig, scope_key
from qpeft.adapters.inspection import count_parameters, target_layers
from qpeft.adapters.parameter_count import fit, lora_count, trainable_count
from qpeft.adapters.peft import config_class
from qpeft.adapters.registry import METHODS
from qpeft.errors import AdapterError
from qpeft.testing.tools import gpt2

TARGETS = ["q_proj", "v_proj", "down_proj"]


def llama() -> LlamaForCausalLM:
    """Three layers without memory, of sizes that give each method room."""
    sizes = {"vocab_size": 61, "hidden_size": 96, "intermediate_size": 144, "num_attention_heads": 3, "num_key_value_heads": 1}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **sizes))


def whole(method: str, **settings: Any) -> int:
    """The count on a model that the adapter was put into."""
    return count_parameters(llama(), config_class(method)(target_modules=TARGETS, **settings))["trainable"]


def test_target_layers() -> None:
    layers = target_layers(llama(), TARGETS)
    assert sorted(layers) == sorted(
        layer
        for i in range(3)
        for layer in (
            (f"model.layers.{i}.self_attn.q_proj", 96, 96),
            (f"model.layers.{i}.self_attn.v_proj", 96, 32),
            (f"model.layers.{i}.mlp.down_proj", 144, 96),
        )
    )
    assert {name.rpartition(".")[2] for name, *_ in target_layers(llama())} == {"q_proj", "v_proj"}  # PEFT's default
    assert ("transformer.h.0.attn.c_attn", 24, 72) in target_layers(gpt2(), ["c_attn"])  # Conv1D


@pytest.mark.parametrize(
    ("sharing", "key", "found"),
    [
        ("none", "model.layers.3.mlp.down_proj", None),
        ("layer", "model.layers.3.mlp.down_proj", "model.layers.3"),
        ("layer", "0", "0"),
        ("layer", "lm_head", "lm_head"),
        ("model", "lm_head", ""),
    ],
)
def test_scope_key(sharing: str, key: str, found: str | None) -> None:
    assert scope_key(sharing, key) == found


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *((name, {}) for name in METHODS),
        *(("QTHA", {"r": 2, "share_circuit": share}) for share in ("layer", "model")),
        *(("QPA", {"r": 2, "chunk_size": 64, "share": share}) for share in ("none", "layer", "model")),
        ("AMPLITUDE", {"generator": "frozen"}),
    ],
)
def test_counts_equal_those_on_a_model(method: str, settings: dict[str, Any]) -> None:
    config = METHODS[method].config(**settings)
    assert trainable_count(METHODS[method], config, target_layers(llama(), TARGETS)) == whole(method, **settings)


def test_lora_count() -> None:
    layers = target_layers(llama(), TARGETS)
    assert lora_count(layers, 4) == count_parameters(llama(), config_class("lora")(r=4, target_modules=TARGETS))["trainable"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_a_fit_is_the_largest_within_the_budget(name: str, share: float) -> None:
    method, layers = METHODS[name], target_layers(llama(), TARGETS)
    allowed = share * lora_count(layers, 8)
    found = fit(method, layers, allowed, rank=8)
    counts = []
    for settings in method.config.budget_grid(8):
        try:
            counts.append(trainable_count(method, method.config(**settings), layers))
        except AdapterError:
            continue
    assert found.least == min(counts)
    assert (found.settings is None) == (found.least > allowed)
    if found.settings is not None:
        assert found.parameters == whole(name, **found.settings) <= allowed
        assert found.parameters == max(count for count in counts if count <= allowed)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_every_size_listed_is_valid_and_they_grow(name: str, rank: int) -> None:
    method = METHODS[name]
    counts = []
    for settings in method.config.budget_grid(rank):
        config = method.config(**settings)
        config.check()
        counts.append(trainable_count(method, config, [("layer", 576, 192)]))
    assert counts[0] <= counts[-1]
    assert math.prod(counts) > 0


def test_when_nothing_fits_the_least_is_named() -> None:
    found = fit(METHODS["QAA"], [("layer", 64, 32)], allowed=10, rank=4)
    assert (found.settings, found.parameters) == (None, 0)
    assert found.least_settings == {"r": 1}
    assert found.least == 64 + 32 + 8  # one amplitude, one qubit, eight layers


def test_fixed_settings_hold() -> None:
    found = fit(METHODS["QAA"], [("layer", 64, 32)], allowed=900, rank=4, fixed={"n_layers": 2, "unitary": "product"})
    assert found.settings == {"r": 8, "n_layers": 2, "unitary": "product"}
    assert found.parameters == 8 * 64 + 3 * 32 + 3 * 2


def test_settings_that_no_layer_takes_are_refused_in_the_methods_words() -> None:
    with pytest.raises(AdapterError, match="n_layers must be a whole number"):
        fit(METHODS["QAA"], [("layer", 64, 32)], allowed=900, rank=4, fixed={"n_layers": 0})


def test_the_default_grid_is_the_ranks() -> None:
    class Plain(AdapterConfig):
        pass

    assert Plain.budget_grid(4) == [{}]
    assert METHODS["QAA"].config.budget_grid(3)[:4] == [{"r": 1}, {"r": 2}, {"r": 3}, {"r": 6}]

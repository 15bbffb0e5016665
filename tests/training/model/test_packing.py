"""Packed rows give the losses and gradients of rows by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaForCausalLM

from qpeft.errors import ConfigError
from qpeft.training.data.tokenization import IGNORED, collator
from qpeft.training.loop.run import train
from qpeft.training.model.label_logits import cross_entropy, labelled
from qpeft.training.model.packing import bins, packed
from qpeft.training.recipe.config import load_recipe


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_every_row_is_in_one_sequence_with_room(lengths: list[int]) -> None:
    found = bins(lengths, max(lengths))
    assert sorted(row for group in found for row in group) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in group) <= max(lengths) for group in found)
    assert len(found) <= 2 * -(-sum(lengths) // max(lengths))  # first-fit leaves at most one sequence under half full


def _gradients(model: Any, inputs: dict[str, Any], following: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    loss = cross_entropy(model(**inputs, use_cache=False), following)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_losses_and_gradients_are_those_of_rows_by_themselves(tiny_model: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    rows = []
    for length in (30, 4, 9, 17, 12, 2):
        ids = torch.randint(2, 250, (length,), generator=draw).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * (length // 2) + ids[length // 2 :]})
    batch = dict(collator(AutoTokenizer.from_pretrained(tiny_model))(rows))
    columns, following = labelled(batch["labels"])
    plain = {name: batch[name] for name in ("input_ids", "attention_mask")} | {"logits_to_keep": columns}
    inputs, packed_following = packed(batch, model)
    assert inputs["input_ids"].shape == (3, 30)  # 74 tokens instead of 180
    assert (packed_following != IGNORED).sum() == (following != IGNORED).sum()
    expected, found = _gradients(model, plain, following), _gradients(model, inputs, packed_following)
    assert found[0] == pytest.approx(expected[0], rel=1e-10)
    for a, b in zip(expected[1], found[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_a_packed_run_trains_like_an_unpacked_one(recipe: Path, tmp_path: Path) -> None:
    settings = ["adapter.dropout=0.0", "training.max_steps=3", "training.logging_steps=1", "training.per_device_train_batch_size=4"]
    plain, short = (
        train(load_recipe(recipe, [*settings, f"training.packing={word}"]), tmp_path / word) for word in ("false", "true")
    )
    assert [p.loss for p in short.train_curve] == pytest.approx([p.loss for p in plain.train_curve], rel=1e-5)
    assert short.train_tokens == plain.train_tokens


def test_packing_excludes_what_it_cannot_be_with(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="packing"):
        load_recipe(recipe, ["training.packing=true", "training.share_prefixes=true"])
    with pytest.raises(ConfigError, match="row by row"):
        load_recipe(recipe, ["training.packing=true", "backend={name: simulator}"])

"""Rows that share what they begin with: losses, gradients and metrics are those of rows by themselves."""

from __future__ import annotations

import copy
import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from qpeft.errors import ConfigError
from qpeft.study.plan import fingerprint
from qpeft.training.data.tokenization import IGNORED
from qpeft.training.loop.run import train
from qpeft.training.model.held_out_loss import evaluate
from qpeft.training.model.label_logits import cross_entropy
from qpeft.training.model.loading import load_model, load_tokenizer
from qpeft.training.model.prefix_sharing import (
    TokenTree,
    demand_trees,
    narrowed,
    shares_prefixes,
    takes_trees,
    training_obstacle,
)
from qpeft.training.recipe.config import load_recipe


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6))
def test_a_tree_holds_every_prefix_once(rows: list[list[int]]) -> None:
    tree = TokenTree.of(rows)
    assert len(tree.ids) == len({tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)})
    seen, depths = tree.seen(), tree.depths()
    for row, path in zip(rows, tree.paths, strict=True):
        assert [tree.ids[at] for at in path] == row
        assert [depths[at] for at in path] == list(range(len(row)))
        for place, at in enumerate(path):
            assert sorted(seen[at].nonzero()[0].tolist()) == sorted(path[: place + 1])


def padded(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [1] * (longest - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [IGNORED] * (longest - len(ids)) for ids, labels in rows]),
    }


PREFIX = [5, 9, 2, 7, 7, 31]
BATCHES = {
    "one instruction": [([*PREFIX, 3 + i, 8, *range(20, 22 + i)], [IGNORED] * 8 + list(range(20, 22 + i))) for i in range(4)],
    "nothing in common": [([40 + i, 2, 3, 4], [IGNORED, 2, 3, 4]) for i in range(3)],
    "copies": [([1, 2, 3, 4], [IGNORED, IGNORED, 3, 4])] * 3 + [([1, 2, 3, 9], [IGNORED, IGNORED, 3, 9])],
    "one row begins another": [([1, 2, 3], [IGNORED, 2, 3]), ([1, 2, 3, 4, 5], [IGNORED] * 3 + [4, 5])],
    "a row without labels": [([1, 2, 3], [1, 2, 3]), ([1, 2, 4], [IGNORED] * 3)],
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("items", [None, 5])
def test_loss_and_gradients_are_those_of_rows(recipe: Path, name: str, attention: str, items: int | None) -> None:
    section = load_recipe(recipe).model.model_copy(update={"attn_implementation": attention})
    model = load_model(section).double().requires_grad_(True)
    batch = padded(BATCHES[name])
    want = model(**batch, **({} if items is None else {"num_items_in_batch": items})).loss
    gradients = torch.autograd.grad(want, tuple(model.parameters()))
    inputs, following = narrowed(batch, model, share_prefixes=True)
    assert (inputs["input_ids"].shape[0] == 1) == (name != "nothing in common")
    outputs = model(**inputs)
    found = cross_entropy(outputs, following, items)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)  # the loss itself is taken in float32
    for mine, theirs in zip(torch.autograd.grad(found, tuple(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_long_rows_are_better_by_themselves(recipe: Path) -> None:
    model = load_model(load_recipe(recipe).model)
    for length, alone in ((2, False), (200, True)):
        rows = [([*PREFIX, *range(10 + i, 10 + i + length)], [IGNORED] * len(PREFIX) + [3] * length) for i in range(4)]
        inputs, _ = narrowed(padded(rows), model, share_prefixes=True)
        assert (inputs["input_ids"].shape[0] == 4) is alone


def test_metrics_are_those_of_rows(recipe: Path) -> None:
    section = load_recipe(recipe).model
    model, tokenizer = load_model(section), load_tokenizer(section)
    rows = [{"input_ids": ids, "labels": labels} for ids, labels in itertools.chain(*BATCHES.values())]
    for size in (1, 3, 20):
        together = evaluate(model, rows, tokenizer, batch_size=size, share_prefixes=True)
        assert together == pytest.approx(evaluate(model, rows, tokenizer, batch_size=size, share_prefixes=False), rel=1e-5)


@pytest.mark.parametrize("more", [[], ["model.dtype=bfloat16"], ["training.gradient_checkpointing=true"]])
def test_a_run_ends_where_it_ends_without(recipe: Path, tmp_path: Path, more: list[str]) -> None:
    plain = ["compare=null", "adapter.dropout=0", "training.max_steps=6", "training.save_strategy=no", *more]
    records = [
        train(load_recipe(recipe, [*plain, f"training.share_prefixes={given}"]), tmp_path / given) for given in ("false", "true")
    ]
    apart, shared = records
    assert apart.metrics["loss"] == pytest.approx(shared.metrics["loss"], rel=2e-2 if "bfloat16" in str(more) else 1e-4)
    assert apart.metrics["loss"] != apart.metrics_before["loss"]
    assert shared.train_tokens == apart.train_tokens
    assert shared.config["training"]["share_prefixes"] is True


def test_where_it_cannot_be_had(recipe: Path) -> None:
    for more, told in (
        (["training.label_smoothing_factor=0.1"], "share_prefixes: true together with label_smoothing_factor"),
        (["training.neftune_noise_alpha=5"], "share_prefixes: true together with neftune_noise_alpha"),
        (["compare=null", 'backend={name: "emulator:wukong-72"}'], "share_prefixes: a backend's work is planned row by row"),
    ):
        with pytest.raises(ConfigError, match=told):
            load_recipe(recipe, ["training.share_prefixes=true", *more])

    model: Any = load_model(load_recipe(recipe).model)
    demand_trees(model)
    prompted = get_peft_model(copy.deepcopy(model), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ConfigError, match=r"share_prefixes: PROMPT_TUNING changes the attention mask"):
        demand_trees(prompted)
    model.config.sliding_window = 16
    assert not takes_trees(model)
    with pytest.raises(ConfigError, match=r"share_prefixes: llama with sdpa attention takes no trees; expected .*without sliding"):
        demand_trees(model)


LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize(
    ("more", "adapter", "obstacle"),
    [
        ([], LORA, None),
        (["training.packing=true"], LORA, "packing"),
        (["training.label_smoothing_factor=0.1"], LORA, "label_smoothing_factor"),
        (["training.neftune_noise_alpha=5"], LORA, "neftune_noise_alpha depends on the length of a row"),
        (["training.torch_compile=true"], LORA, "torch_compile"),
        (["compare=null", 'backend={name: "emulator:wukong-72"}'], LORA, "a backend's work is planned row by row"),
        ([], LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1), "dropout would be the same in all rows"),
        ([], PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PROMPT_TUNING changes the attention mask"),
    ],
)
def test_auto_is_off_where_it_would_change_the_run(recipe: Path, more: list[str], adapter: Any, obstacle: str | None) -> None:
    config = load_recipe(recipe, more)
    assert config.training.share_prefixes == "auto"
    assert config.shares_in_evaluation is (config.backend is None)
    model = get_peft_model(load_model(config.model), copy.deepcopy(adapter))
    assert training_obstacle(config, model) == obstacle
    assert shares_prefixes(model) is ("attention mask" not in str(obstacle))


@pytest.mark.parametrize(
    "adapter", ["{peft_type: LORA, r: 2, target_modules: [q_proj]}", "{peft_type: PROMPT_TUNING, num_virtual_tokens: 2}"]
)
def test_auto_trains_to_the_loss_of_rows(recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, adapter: str) -> None:
    short = ["training.max_steps=3", "training.save_strategy=no", "training.bf16=true", "training.use_cpu=true"]
    given = ["compare=null", f"adapter={adapter}", *short]
    caplog.set_level(logging.INFO, "qpeft")
    found = train(load_recipe(recipe, given), tmp_path / "auto")
    decided = "on, in batches where it is less work" if "LORA" in adapter else "off in training (PROMPT_TUNING changes"
    assert f"share_prefixes: auto: {decided}" in caplog.text
    want = train(load_recipe(recipe, [*given, "training.share_prefixes=false"]), tmp_path / "false")
    assert found.metrics["loss"] == pytest.approx(want.metrics["loss"], rel=2e-3)
    assert fingerprint(load_recipe(recipe, given)) == fingerprint(load_recipe(recipe, [*given, "training.share_prefixes=false"]))

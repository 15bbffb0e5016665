"""Logits for the labelled columns alone: loss, gradients and metrics are those of the whole output layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qpeft.training.data.tokenization import IGNORED
from qpeft.training.model.held_out_loss import evaluate
from qpeft.training.model.label_logits import cross_entropy, keeps_logits, labelled, plain_loss
from qpeft.training.model.loading import load_model, load_tokenizer
from qpeft.training.recipe.config import load_recipe


def batch() -> dict[str, torch.Tensor]:
    """Rows whose answers stand in different places, one of them padded, one without an answer."""
    torch.manual_seed(0)
    ids = torch.randint(2, 200, (3, 12))
    labels = torch.full_like(ids, IGNORED)
    labels[0, 5:8] = ids[0, 5:8]
    labels[1, 0], labels[1, 11] = ids[1, 0], ids[1, 11]  # the first token has nothing before it, the last one no column after it
    mask = torch.ones_like(ids)
    mask[0, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.fixture
def model(recipe: Path) -> Any:
    return load_model(load_recipe(recipe).model)


def test_columns_are_those_before_labelled_tokens() -> None:
    columns, following = labelled(batch()["labels"])
    assert columns.tolist() == [4, 5, 6, 10]
    assert (following != IGNORED).sum(1).tolist() == [3, 1, 0]


@pytest.mark.parametrize("items", [None, 7])
def test_loss_and_gradients_are_transformers_own(model: Any, items: int | None) -> None:
    given = batch()
    model.requires_grad_(True)
    want = model(**given, **({} if items is None else {"num_items_in_batch": items})).loss
    gradients = torch.autograd.grad(want, tuple(model.parameters()))
    columns, following = labelled(given.pop("labels"))
    outputs = model(**given, logits_to_keep=columns)
    assert outputs.logits.shape[1] == 4
    found = cross_entropy(outputs, following, items)
    torch.testing.assert_close(found, want)
    for mine, theirs in zip(torch.autograd.grad(found, tuple(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_metrics_do_not_depend_on_it(recipe: Path, model: Any) -> None:
    class Whole(nn.Module):
        """A model that computes all logits, whatever it is asked."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.device = inner, inner.device

        def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    tokenizer = load_tokenizer(load_recipe(recipe).model)
    rows = [{"input_ids": list(range(2, 2 + n)), "labels": [IGNORED] * (n - 3) + list(range(n - 1, 2 + n))} for n in (5, 9, 14)]
    whole = Whole(model)
    assert keeps_logits(model)
    assert not keeps_logits(whole)
    assert evaluate(model, rows, tokenizer) == pytest.approx(evaluate(whole, rows, tokenizer), rel=1e-6)


def test_losses_with_more_in_them_are_left_to_the_model(model: Any) -> None:
    assert plain_loss(model)
    model.config.output_router_logits = True  # a mixture of experts adds the balance of its router
    assert not plain_loss(model)

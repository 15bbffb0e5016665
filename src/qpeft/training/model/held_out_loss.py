"""Held-out metrics: one definition of loss for tables, curves and reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from qpeft.training.data.tokenization import IGNORED, collator
from qpeft.training.model.label_logits import keeps_logits, labelled
from qpeft.training.model.prefix_sharing import narrowed, takes_trees

Rows = Sequence[dict[str, list[int]]]


def evaluate(
    model: Any, rows: Rows, tokenizer: Any, *, batch_size: int = 8, progress: bool = False, share_prefixes: bool = False
) -> dict[str, float]:
    """Token-weighted metrics of a causal language model on tokenised rows. With `share_prefixes` what rows of a batch begin with is
    computed once, where the model can do that; without, or elsewhere, row by row.

    Returns:
        loss: mean cross-entropy of the labelled tokens, nats a token (each token counts once, whatever its batch).
        perplexity: exp(loss). token_accuracy: share of labelled tokens that are the most likely one, 0..1.
        tokens: how many tokens were labelled.
    """
    import torch

    total, correct, count = 0.0, 0, 0
    training, keeps = model.training, keeps_logits(model)
    shares = share_prefixes and keeps and takes_trees(model)
    model.eval()
    try:
        with torch.inference_mode():
            for batch in _batches(model, rows, tokenizer, batch_size, progress):
                if keeps:
                    inputs, following = narrowed(batch, model, shares)
                    logits = model(**inputs, use_cache=False).logits
                else:
                    columns, following = labelled(batch.pop("labels"))
                    logits = model(**batch, use_cache=False).logits[:, columns]
                wanted = following != IGNORED
                logits = logits[wanted].float()
                target = following[wanted]
                total += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
                correct += int((logits.argmax(-1) == target).sum())
                count += target.numel()
    finally:
        model.train(training)
    loss = total / count
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "token_accuracy": correct / count, "tokens": float(count)}


def _batches(model: Any, rows: Rows, tokenizer: Any, batch_size: int, progress: bool) -> Iterable[dict[str, Any]]:
    """Padded batches on the model's device, rows of like length together, so that little is padding."""
    from tqdm.auto import tqdm

    collate = collator(tokenizer)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    starts = range(0, len(rows), batch_size)
    for start in tqdm(starts, desc="evaluating", disable=not progress, leave=False):
        batch = collate([rows[i] for i in order[start : start + batch_size]])
        yield {name: tensor.to(model.device) for name, tensor in batch.items()}

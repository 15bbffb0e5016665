"""Held-out metrics: one definition of loss for tables, curves and reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from qpeft.progress import counted
from qpeft.training.data.tokenization import IGNORED, collator
from qpeft.training.model.label_logits import keeps_logits, labelled
from qpeft.training.model.prefix_sharing import narrowed, shares_prefixes
from qpeft.training.processes import Processes

Rows = Sequence[dict[str, list[int]]]


def evaluate(
    model: Any,
    rows: Rows,
    tokenizer: Any,
    *,
    batch_size: int = 8,
    progress: bool = False,
    share_prefixes: bool = True,
    processes: Processes | None = None,
    recorded: bool = False,
) -> dict[str, float]:
    """Token-weighted metrics of a causal language model on tokenised rows.

    Args:
        model: the language model.
        rows: tokenised rows.
        tokenizer: its tokenizer.
        batch_size: rows in a batch.
        progress: show a bar.
        share_prefixes: compute once what rows of a batch begin with, where the model can do that and it is less work.
        processes: that share the batches out among them; each returns the metrics of all rows.
        recorded: use `no_grad` instead of `inference_mode`, for sharded parameters, which training needs again.

    Returns:
        loss: mean cross-entropy of the labelled tokens, nats/token (each token counts once, whatever its batch).
        perplexity: exp(loss). token_accuracy: share of labelled tokens that are the most likely one, 0..1.
        tokens: how many tokens were labelled.
    """
    import torch

    together = processes or Processes()
    total, correct, count = 0.0, 0, 0
    training, keeps = model.training, keeps_logits(model)
    shares = share_prefixes and keeps and shares_prefixes(model)
    model.eval()
    try:
        with torch.no_grad() if recorded else torch.inference_mode():
            for batch, counts in _batches(model, rows, tokenizer, batch_size, progress, together):
                if keeps:
                    inputs, following = narrowed(batch, model, shares)
                    logits = model(**inputs, use_cache=False).logits
                else:
                    columns, following = labelled(batch.pop("labels"))
                    logits = model(**batch, use_cache=False).logits[:, columns]
                wanted = following != IGNORED
                logits = logits[wanted].float()
                target = following[wanted]
                if counts:
                    total += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
                    correct += int((logits.argmax(-1) == target).sum())
                    count += target.numel()
    finally:
        model.train(training)
    parts = together.gather((total, correct, count))
    total, correct, count = sum(p[0] for p in parts), sum(p[1] for p in parts), sum(p[2] for p in parts)
    loss = total / count
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "token_accuracy": correct / count, "tokens": float(count)}


def _batches(
    model: Any, rows: Rows, tokenizer: Any, batch_size: int, progress: bool, processes: Processes
) -> Iterable[tuple[dict[str, Any], bool]]:
    """(padded batch on the model's device, whether it counts), rows of similar length together, so that little is padding.

    Every process gets as many batches as the others, because sharded models and chips need all of them in each forward pass; a
    batch that some process has had already does not count.
    """
    collate = collator(tokenizer)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    starts = range(0, len(rows), batch_size)
    rounds = -(-len(starts) // processes.count)
    for number in counted(range(rounds), "evaluating, batch", shown=progress):
        at = number * processes.count + processes.rank
        start = starts[at % len(starts)]
        batch = collate([rows[i] for i in order[start : start + batch_size]])
        yield {name: tensor.to(model.device) for name, tensor in batch.items()}, at < len(starts)

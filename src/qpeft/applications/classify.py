"""A language model as a classifier: the probability of each answer, from the likelihood of its tokens after the prompt."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qpeft.applications.tables import Task
from qpeft.errors import DataError
from qpeft.training.data import Conversation, Message
from qpeft.training.tokenization import IGNORED, tokenize

if TYPE_CHECKING:
    import numpy as np

_NO_LIMIT = 2**31


def label_log_likelihoods(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    goes_on: bool = False,
    system: str | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> np.ndarray:
    """`(prompts, answers)`, float64: the sum of log p(token | what precedes it) over an answer's tokens, its end of turn included.

    These are the very tokens that training puts its loss on. Where an answer only begins what is said (`goes_on`), the tokens that
    all answers end in do not count. What the answers of one prompt share is computed once: the prompts
    of a batch run once, and all their answers in one second pass over the kept keys and values.

    Raises DataError if two answers are the same tokens.
    """
    import numpy as np
    from tqdm.auto import tqdm

    encoded = [_encode(tokenizer, prompt, answers, system, goes_on) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i][0]))
    scores = np.zeros((len(prompts), len(answers)))
    training = model.training
    model.eval()
    try:
        for start in tqdm(range(0, len(order), batch_size), desc="classifying", disable=not progress, leave=False):
            batch = order[start : start + batch_size]
            scores[batch] = _score(model, tokenizer, [encoded[i] for i in batch])
    finally:
        model.train(training)
    return scores


def probabilities(scores: np.ndarray) -> np.ndarray:
    """The likelihoods as probabilities that add up to 1 over the answers."""
    import numpy as np

    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def ask(model: Any, tokenizer: Any, task: Task, prompts: Sequence[str], **options: Any) -> np.ndarray:
    """`(prompts, task.answers)`: how probable the model finds each answer; options as above."""
    scores = label_log_likelihoods(model, tokenizer, prompts, task.beginnings, goes_on=bool(task.reasons), **options)
    return probabilities(scores)


_Tail = tuple[list[int], list[bool]]


def _encode(
    tokenizer: Any, prompt: str, answers: Sequence[str], system: str | None, goes_on: bool
) -> tuple[list[int], list[_Tail]]:
    """(ids that all answers share but the last, for each answer the ids from that one on and which of them count)."""
    start = (Message("system", system),) if system else ()
    whole = [
        tokenize(Conversation((*start, Message("user", prompt), Message("assistant", answer))), tokenizer, _NO_LIMIT)
        for answer in answers
    ]
    rows = [row["input_ids"] for row in whole]
    if len({tuple(ids) for ids in rows}) < len(answers):
        raise DataError("two answers are the same tokens", expected="answers that differ")
    first = min(next(i for i, label in enumerate(row["labels"]) if label != IGNORED) for row in whole)
    shared = 0
    while shared < first and len({ids[shared] for ids in rows}) == 1:
        shared += 1
    cut, end = max(shared - 1, 0), 0
    while goes_on and len({ids[-1 - end] for ids in rows}) == 1:
        end += 1
    return rows[0][:cut], [
        (
            row["input_ids"][cut:],
            [at < len(row["labels"]) - end and row["labels"][at] != IGNORED for at in range(cut, len(row["labels"]))],
        )
        for row in whole
    ]


def _cache_name(model: Any) -> str:
    """What this transformers calls the argument that holds keys and values."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"


def _score(model: Any, tokenizer: Any, batch: Sequence[tuple[list[int], list[_Tail]]]) -> np.ndarray:
    import numpy as np
    import torch
    from transformers import DynamicCache

    device, filler = model.device, tokenizer.pad_token_id or tokenizer.eos_token_id or 0
    n, k = len(batch), len(batch[0][1])
    longest = max(len(prefix) for prefix, _ in batch)
    width = max(len(ids) for _, tails in batch for ids, _ in tails)
    prefix_ids = torch.full((n, longest), filler)
    prefix_mask = torch.zeros((n, longest), dtype=torch.long)
    tail_ids = torch.full((n * k, width), filler)
    counted = torch.zeros((n * k, width), dtype=torch.bool)
    tail_mask = torch.zeros((n * k, width), dtype=torch.long)
    for i, (prefix, tails) in enumerate(batch):
        prefix_ids[i, longest - len(prefix) :] = torch.tensor(prefix)  # on the left, so that the answers follow at once
        prefix_mask[i, longest - len(prefix) :] = 1
        for j, (ids, counts) in enumerate(tails):
            tail_ids[i * k + j, : len(ids)] = torch.tensor(ids)
            tail_mask[i * k + j, : len(ids)] = 1
            counted[i * k + j, : len(ids)] = torch.tensor(counts)
    lengths = prefix_mask.sum(1, keepdim=True)
    cache = DynamicCache(config=model.config)
    kept = {_cache_name(model): cache, "use_cache": True}
    with torch.inference_mode():
        if longest:
            model(
                input_ids=prefix_ids.to(device),
                attention_mask=prefix_mask.to(device),
                position_ids=(prefix_mask.cumsum(1) - 1).clamp(min=0).to(device),
                logits_to_keep=1,
                **kept,
            )
            cache.batch_repeat_interleave(k)
        logits = model(
            input_ids=tail_ids.to(device),
            attention_mask=torch.cat([prefix_mask.repeat_interleave(k, 0), tail_mask], dim=1).to(device),
            position_ids=(lengths.repeat_interleave(k, 0) + torch.arange(width)).to(device),
            **kept,
        ).logits[:, :-1]
    told = logits.float().log_softmax(-1).gather(-1, tail_ids[:, 1:, None].to(device)).squeeze(-1)
    summed = (told.cpu() * counted[:, 1:]).double().sum(1)
    return np.asarray(summed.reshape(n, k))

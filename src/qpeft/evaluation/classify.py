"""A language model as a classifier: the probability of each answer, from the likelihood of its tokens after the prompt."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qpeft.errors import DataError
from qpeft.progress import counted
from qpeft.training.data.examples import Conversation, Message
from qpeft.training.data.tokenization import IGNORED, tokenize
from qpeft.training.model.prefix_sharing import TokenTree, additive, takes_trees

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
    """Log-likelihood of each answer after each prompt: the sum of log p(token | what precedes it) over the answer's tokens, its end
    of turn included.

    These are the very tokens that training puts its loss on. What the answers of one prompt share is computed once: the prompts of
    a batch run once, and their answers in one second pass over the kept keys and values, where what several answers begin with is
    computed once too.

    Args:
        model: the language model; its training mode is restored.
        tokenizer: its tokenizer.
        prompts: the user's messages.
        answers: the possible answers, the same for every prompt.
        goes_on: the answer only begins what is said. The tokens that all answers end in do not count then.
        system: system message before each prompt.
        batch_size: prompts in a batch.
        progress: show the count of batches.

    Returns:
        `(prompts, answers)`, float64, nats.

    Raises:
        DataError: two answers are the same tokens.
    """
    import numpy as np

    encoded = [_encode(tokenizer, prompt, answers, system, goes_on) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i][0]))
    scores = np.zeros((len(prompts), len(answers)))
    training = model.training
    model.eval()
    try:
        for start in counted(range(0, len(order), batch_size), "classifying, batch", shown=progress):
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
    """Name of the forward argument for the key-value cache in the installed transformers version."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"


def _score(model: Any, tokenizer: Any, batch: Sequence[tuple[list[int], list[_Tail]]]) -> np.ndarray:
    """`(batch, answers)`. All answers to a prompt are one tree, where the model can do that, else each is one of its own."""
    import numpy as np
    import torch
    from transformers import DynamicCache

    device, filler = model.device, tokenizer.pad_token_id or tokenizer.eos_token_id or 0
    whole = takes_trees(model)
    groups = [group for _, tails in batch for group in ([tails] if whole else [[tail] for tail in tails])]
    trees = [TokenTree.of([ids for ids, _ in group]) for group in groups]
    each = len(groups) // len(batch)  # trees to a prompt
    longest, width = max(len(prefix) for prefix, _ in batch), max(len(tree.ids) for tree in trees)
    prefix_ids = torch.full((len(batch), longest), filler)
    prefix_mask = torch.zeros((len(batch), longest), dtype=torch.long)
    for i, (prefix, _) in enumerate(batch):
        prefix_ids[i, longest - len(prefix) :] = torch.tensor(prefix)  # on the left, so that the answers follow at once
        prefix_mask[i, longest - len(prefix) :] = 1
    ids = torch.full((len(trees), width), filler)
    depth = torch.zeros((len(trees), width), dtype=torch.long)
    seen = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)  # which nodes a node sees
    for i, tree in enumerate(trees):
        size = len(tree.ids)
        ids[i, :size], depth[i, :size] = torch.tensor(tree.ids), torch.tensor(tree.depths())
        seen[i, :size, :size] = torch.from_numpy(tree.seen())
    before = prefix_mask.repeat_interleave(each, 0)
    if whole:
        both = torch.cat([before[:, None].expand(-1, width, -1).bool(), seen], dim=2)[:, None]
        mask = additive(both, model.dtype)
    else:
        mask = torch.cat([before, torch.tensor([[i < len(tree.ids) for i in range(width)] for tree in trees]).long()], dim=1)
    cache = DynamicCache(config=model.config)
    kept = {_cache_name(model): cache, "use_cache": True}
    with torch.inference_mode():
        if longest:
            model(
                input_ids=prefix_ids.to(device),
                attention_mask=prefix_mask.to(device),
                position_ids=(prefix_mask.cumsum(1) - 1).clamp(min=0).to(device),
                logits_to_keep=torch.empty(0, dtype=torch.long, device=device),  # none is read
                **kept,
            )
            if each > 1:
                cache.batch_repeat_interleave(each)
        logits = model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=(before.sum(1, keepdim=True) + depth).to(device),
            **kept,
        ).logits.float()
    scores = np.zeros(len(groups) * len(groups[0]))
    places, told = [], []
    for i, (tree, group) in enumerate(zip(trees, groups, strict=True)):
        for j, ((tokens, counts), path) in enumerate(zip(group, tree.paths, strict=True)):
            after = [at for at in range(1, len(tokens)) if counts[at]]
            places += [i * len(group) + j] * len(after)
            told += [(i, path[at - 1], tokens[at]) for at in after]
    rows, nodes, following = torch.tensor(told, device=device).unbind(1)
    values = logits[rows, nodes, following] - logits.logsumexp(-1)[rows, nodes]
    np.add.at(scores, places, values.double().cpu().numpy())
    return scores.reshape(len(batch), -1)

"""Answers in words: greedy, many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qpeft.training.data.examples import Conversation, Message
from qpeft.training.data.tokenization import encode_prompt


def conversation(prompt: str, system: str | None) -> list[Message]:
    """A prompt after the system message of a recipe, if it has one."""
    return [*([Message("system", system)] if system else []), Message("user", prompt)]


def answers(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    batch_size: int = 8,
    progress: bool = False,
) -> list[str]:
    """The assistant's next turn after each of the conversations, greedily, cut after `max_new_tokens`.

    Prompts of like length share a pass, padded on the left.
    """
    import torch
    from tqdm.auto import tqdm

    prompts = [encode_prompt(Conversation((*turns, Message("assistant", ""))), tokenizer)[0] for turns in asked]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    told = [""] * len(prompts)
    for start in tqdm(range(0, len(order), batch_size), desc="answering", disable=not progress, leave=False):
        batch = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in batch)
        ids = torch.full((len(batch), width), filler)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=filler,
                do_sample=False,
            )[:, width:]
        for i, text in zip(batch, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True):
            told[i] = text
    return told

"""Generation: the assistant's next turn after each of many conversations, in batches or as a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qpeft.progress import counted
from qpeft.training.data.examples import Conversation, Message
from qpeft.training.data.tokenization import encode_prompt


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A finished answer; `finish_reason` is "stop" (the model ended its turn) or "length". Counts are tokens."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def user_turn(prompt: str, system: str | None) -> list[Message]:
    """A conversation of one question.

    Args:
        prompt: the user's message.
        system: system message that comes first; None for none.
    """
    return [*([Message("system", system)] if system else []), Message("user", prompt)]


def encode_messages(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Token ids of a conversation as training wrote it, up to where the next answer begins (chat template, or plain text).

    Args:
        messages: the turns so far.
        tokenizer: its tokenizer.
    """
    return encode_prompt(Conversation((*messages, Message("assistant", "")), 0, "conversation"), tokenizer)[0]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    batch_size: int = 8,
    streamer: Any = None,
    stopped: Callable[[], bool] | None = None,
    progress: bool = False,
) -> list[Generated]:
    """Continue each prompt by at most `max_new_tokens` tokens; the answers come in the order of the prompts.

    Args:
        model: the language model.
        tokenizer: its tokenizer.
        prompts: token ids, of any lengths. Prompts of similar length share a batch, padded on the left.
        max_new_tokens: the most tokens of an answer.
        temperature: 0 takes the most likely token; above 0 samples among the tokens that make up probability `top_p`.
        top_p: sample from the most likely tokens of this total probability.
        seed: of torch's global generator, set before the first batch; None leaves the generator as it is.
        batch_size: prompts in a batch.
        streamer: a transformers streamer; for one prompt.
        stopped: asked before every token; true ends the generation.
        progress: show the count of batches.
    """
    import torch
    from transformers import StoppingCriteriaList

    def asked_to_stop(tokens: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(tokens),), stopped is not None and stopped(), device=tokens.device)

    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ends = _end_tokens(model)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, Generated] = {}
    if seed is not None:
        torch.manual_seed(seed)
    for start in counted(range(0, len(order), batch_size), "generating, batch", shown=progress):
        batch = order[start : start + batch_size]
        ids, mask = _padded_left([prompts[i] for i in batch], padding)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=padding,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([asked_to_stop] if stopped is not None else []),
                **sampling,
            )[:, ids.shape[1] :]
        for i, row in zip(batch, out.tolist(), strict=True):
            end = next((at for at, token in enumerate(row) if token in ends), None)
            length = len(row) if end is None else end + 1
            finished = end is not None or length < max_new_tokens
            found[i] = Generated(
                text=tokenizer.decode(row[:length], skip_special_tokens=True),
                finish_reason="stop" if finished else "length",
                prompt_tokens=len(prompts[i]),
                completion_tokens=length,
            )
    return [found[i] for i in range(len(prompts))]


def _padded_left(prompts: Sequence[Sequence[int]], padding: int) -> tuple[Any, Any]:
    """Ids and attention mask, `(rows, longest)` each."""
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), padding)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=ids.dtype)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def _end_tokens(model: Any) -> set[int]:
    """The tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return set() if ends is None else set(ends) if isinstance(ends, list) else {ends}

"""Generation with a trained adapter, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qpeft.training.data.examples import Conversation, Message
from qpeft.training.data.tokenization import encode_prompt


def reply(
    model: Any,
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    stream: bool = True,
) -> str:
    """The assistant's next turn after `messages`, printed as it comes with `stream`.

    Greedy at temperature 0, else sampled. The prompt is what training made of the same messages (the chat template, or plain
    text without one).
    """
    import torch
    from transformers import TextStreamer

    ids, _ = encode_prompt(Conversation((*messages, Message("assistant", "")), 0, "chat"), tokenizer)
    inputs = torch.tensor([ids], device=model.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.inference_mode():
        out = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None,
            **sampling,
        )
    text: str = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
    return text

"""The output layer runs only where a token is to be predicted.

A fifth of a small model's work is its output layer, and much of any model's memory in training is logits, `(rows, tokens,
vocabulary)`. Where prompts are long and answers short, few of them are needed.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from qpeft.training.data.tokenization import IGNORED

if TYPE_CHECKING:
    from torch import Tensor


def labelled(labels: Tensor) -> tuple[Tensor, Tensor]:
    """From labels `(B, T)`: the columns `(C,)` after which some row has a label, and the tokens that follow them, `(B, C)`."""
    following = labels[:, 1:]
    columns = (following != IGNORED).any(0).nonzero().squeeze(1)
    return columns, following[:, columns]


def keeps_logits(model: Any) -> bool:
    """Whether the model's forward can be limited to logits of given columns."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def plain_loss(model: Any) -> bool:
    """Whether the model's own training loss is the mean cross-entropy of the labelled tokens and nothing else."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, "loss_function", None) is ForCausalLMLoss and not getattr(base.config, "output_router_logits", False)


def cross_entropy(outputs: Any, following: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """transformers' loss of causal language models, for logits and the tokens that follow them.

    Args:
        outputs: the model's outputs, with `logits (..., vocabulary)`.
        following: the label of the token after each position, -100 where there is none.
        num_items_in_batch: divide the sum of losses by this number; default the mean over labelled tokens.

    Returns:
        A scalar, nats/token.
    """
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits = outputs.logits
    loss: Tensor = ForCausalLMLoss(
        logits, None, vocab_size=logits.shape[-1], num_items_in_batch=num_items_in_batch, shift_labels=following
    )
    return loss

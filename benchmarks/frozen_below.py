"""Training adapters in a model's last layers: what the frozen layers below give out is computed once, for all rows and all runs.

It is the same training as in the whole model, at the cost of the last layers alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WARMUP = 3  # steps


class FrozenBelow:
    """A language model whose lower layers have already run.

    Args:
        model: a causal language model of the Llama family, in evaluation mode.
        last: layers that are left, the upper ones.
    """

    def __init__(self, model: Any, last: int) -> None:
        self.model, self.last = model, last
        self.below = model.config.num_hidden_layers - last

    @torch.no_grad()
    def inputs(self, rows: Sequence[Sequence[int]], cache: Path | None = None) -> list[Tensor]:
        """What the upper layers are given for each row of token ids, `(tokens, hidden)`.

        Args:
            rows: token ids.
            cache: folder in which what was computed is kept.
        """
        told = json.dumps([self.model.name_or_path, self.below, [list(row) for row in rows]])
        file = None if cache is None else cache / f"inputs-{hashlib.sha256(told.encode()).hexdigest()[:16]}.pt"
        if file is not None and file.exists():
            return list(torch.load(file))
        found: list[Tensor] = []
        for at in range(0, len(rows), 16):
            batch = [torch.tensor(row) for row in rows[at : at + 16]]
            padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in batch], batch_first=True)
            states = self.model.model(
                input_ids=padded, attention_mask=mask, output_hidden_states=True, use_cache=False
            ).hidden_states
            found += [row[: len(ids)].clone() for row, ids in zip(states[self.below], batch, strict=True)]
        if file is not None:
            torch.save(found, file)
        return found

    def upper(self) -> Any:
        """A copy of the model that has the upper layers alone, numbered from 0."""
        config = copy.deepcopy(self.model.config)
        config.num_hidden_layers = self.last
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[-self.last :]
        with torch.device("meta"):
            part = type(self.model)(config)
        whole = self.model.model
        for index, layer in enumerate(whole.layers[self.below :]):
            part.model.layers[index] = copy.deepcopy(layer)
            part.model.layers[index].self_attn.layer_idx = index
        part.model.norm, part.lm_head = copy.deepcopy(whole.norm), copy.deepcopy(self.model.lm_head)
        part.model.rotary_emb = copy.deepcopy(whole.rotary_emb)
        part.model.embed_tokens = torch.nn.Identity()  # rows come as vectors
        return part.requires_grad_(False)


def last_hidden(model: Any, rows: Sequence[Tensor]) -> tuple[Any, Tensor, Tensor]:
    """The upper layers of some rows.

    Args:
        model: an upper part, with or without an adapter.
        rows: of `FrozenBelow.inputs`.

    Returns:
        The language model's head, the last hidden states `(rows, longest, hidden)` and the rows' lengths.
    """
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    mask = (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    return core.lm_head, core.model(inputs_embeds=padded, attention_mask=mask, use_cache=False).last_hidden_state, lengths


def adapted(upper: Any, config: Any, seed: int) -> Any:
    """The upper layers with an adapter, initialised from a seed. Their weights are shared, not copied.

    Args:
        upper: of `FrozenBelow.upper`.
        config: a PEFT configuration.
        seed: of the initialisation.
    """
    import peft

    from qpeft.training.loop.loaded_run import copy_sharing_weights

    torch.manual_seed(seed)
    return peft.get_peft_model(copy_sharing_weights(upper), config)


def fit(model: Any, loss_of: Callable[[int], Tensor], steps: int, rate: float) -> float:
    """AdamW without weight decay, linear warm-up, cosine schedule.

    Args:
        model: what is trained: its parameters that require gradients.
        loss_of: the loss of a step's rows, by the number of the step.
        steps: steps.
        rate: peak learning rate.

    Returns:
        The last step's loss.
    """

    def schedule(step: int) -> float:
        if step < WARMUP:
            return (step + 1) / WARMUP
        return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    model.train()
    loss = torch.tensor(math.nan)
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    return loss.item()


def trainable(model: Any) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)

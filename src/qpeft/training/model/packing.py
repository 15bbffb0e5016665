"""Short rows of a batch share sequences, so that little of a batch is padding.

Each packed sequence holds several rows one after another. Positions begin anew in each, and a block-diagonal causal mask keeps rows
from seeing each other, so losses and gradients are those of the unpacked batch to rounding. A sequence is never longer than the
longest row of its batch: packing takes away padding and adds no work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qpeft.training.data.tokenization import IGNORED
from qpeft.training.model.label_logits import labelled
from qpeft.training.model.prefix_sharing import additive, unpadded_rows

if TYPE_CHECKING:
    from torch import Tensor


def bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute rows over packed sequences by first-fit decreasing.

    Args:
        lengths: tokens of each row, at most `capacity`.
        capacity: the most tokens of a sequence.

    Returns:
        Indices of the rows of each sequence.
    """
    found: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((k for k, left in enumerate(room) if left >= lengths[row]), None)
        if place is None:
            place = len(found)
            found.append([])
            room.append(capacity)
        found[place].append(row)
        room[place] -= lengths[row]
    return found


def packed(batch: dict[str, Any], model: Any) -> tuple[dict[str, Any], Tensor]:
    """The model's inputs for a padded batch, packed, and the tokens that its columns of logits are to predict.

    Args:
        batch: `input_ids`, `attention_mask` and `labels`, `(B, T)`.
        model: one whose attention takes a mask of four dimensions (`prefix_sharing.demand_trees`).

    Returns:
        Inputs of `R <= B` sequences with a mask `(R, 1, T, T)` and `logits_to_keep (C,)`; the following tokens `(R, C)`.
    """
    import torch

    rows = unpadded_rows(batch)
    longest = max(len(ids) for ids, _ in rows)
    groups = bins([len(ids) for ids, _ in rows], longest)
    shape = (len(groups), longest)
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    owner = torch.full(shape, -1)  # which row a place belongs to
    for k, group in enumerate(groups):
        at = 0
        for row in group:
            tokens, told = rows[row]
            part = slice(at, at + len(tokens))
            ids[k, part] = torch.tensor(tokens)
            labels[k, part] = torch.tensor([IGNORED, *told[1:]])  # the first token follows another row's last
            positions[k, part] = torch.arange(len(tokens))
            owner[k, part] = row
            at += len(tokens)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    itself = torch.eye(longest, dtype=torch.bool)  # padding sees itself: a row without anything to see would be NaN
    seen = ((owner[:, :, None] == owner[:, None, :]) & (owner[:, :, None] >= 0) & causal) | itself
    device = batch["input_ids"].device
    columns, following = labelled(labels.to(device))
    return {
        "input_ids": ids.to(device),
        "position_ids": positions.to(device),
        "attention_mask": additive(seen.to(device), model.dtype)[:, None],
        "logits_to_keep": columns,
    }, following

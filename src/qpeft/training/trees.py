"""Rows that begin alike as one tree of tokens: what several rows begin with is computed once.

Token i of a tree stands at the depth that it has in its rows and sees its ancestors and itself, so that a model with causal
attention computes for it what it would compute in each row; only rounding differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qpeft.errors import ConfigError
from qpeft.training.labelled import keeps_logits, plain_loss
from qpeft.training.tokenization import IGNORED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_IMPLEMENTATIONS = ("eager", "sdpa")


@dataclass(frozen=True)
class TokenTree:
    """Tokens of rows, what several begin with once: token i is `ids[i]` after token `parents[i]` (-1: the first of a row)."""

    ids: list[int]
    parents: list[int]
    paths: list[list[int]]  # of each row, its tokens' places

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> TokenTree:
        """The smallest tree of these rows; parents come before their children."""
        known: dict[tuple[int, int], int] = {}
        parents: list[int] = []
        paths = []
        for ids in rows:
            at, path = -1, []
            for token in ids:
                if (at, token) not in known:
                    known[at, token] = len(parents)
                    parents.append(at)
                at = known[at, token]
                path.append(at)
            paths.append(path)
        return cls([token for _, token in known], parents, paths)

    def depths(self) -> list[int]:
        """How many tokens stand before each."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths

    def seen(self) -> npt.NDArray[np.bool_]:
        """`(tokens, tokens)`: whether the token of the row sees that of the column."""
        import numpy as np

        seen = np.eye(len(self.ids), dtype=bool)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                seen[i] |= seen[parent]
        return seen


def takes_trees(model: Any) -> bool:
    """Whether attention follows any mask: known of these models without sliding windows, in these implementations."""
    config = model.config
    known = config.model_type in _FAMILIES and getattr(config, "sliding_window", None) is None
    return known and getattr(config, "_attn_implementation", None) in _IMPLEMENTATIONS


def demand_trees(model: Any) -> None:
    """Raises ConfigError where rows of a batch cannot share what they begin with."""
    if not (takes_trees(model) and keeps_logits(model) and plain_loss(model)):
        raise ConfigError(
            f"{model.config.model_type} with {getattr(model.config, '_attn_implementation', None)} attention takes no trees",
            field="training.share_prefixes",
            expected=f"one of {', '.join(_FAMILIES)} without sliding windows, attention {' or '.join(_IMPLEMENTATIONS)}",
            cure="false",
        )


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to attention scores: 0 where it is seen, else the type's least number."""
    import torch

    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def batch_as_tree(batch: dict[str, Any], dtype: torch.dtype) -> tuple[dict[str, Any], Tensor]:
    """A padded batch as one row of a tree: what the model is called with, and the tokens `(1, K)` that its K columns of logits are
    to predict, one for each label of the batch.

    `batch` holds `input_ids`, `attention_mask` and `labels`, `(B, T)`; `dtype` is the model's.
    """
    import torch

    device = batch["input_ids"].device
    given, masks, labels = (batch[name].tolist() for name in ("input_ids", "attention_mask", "labels"))
    rows = [[(i, lab) for i, m, lab in zip(*row, strict=True) if m] for row in zip(given, masks, labels, strict=True)]
    tree = TokenTree.of([[i for i, _ in row] for row in rows])
    after = [(path[t - 1], row[t][1]) for row, path in zip(rows, tree.paths, strict=True) for t in range(1, len(row))]
    told = [pair for pair in after if pair[1] != IGNORED]
    return {
        "input_ids": torch.tensor([tree.ids], device=device),
        "position_ids": torch.tensor([tree.depths()], device=device),
        "attention_mask": additive(torch.from_numpy(tree.seen()).to(device), dtype)[None, None],
        "logits_to_keep": torch.tensor([place for place, _ in told], dtype=torch.long, device=device),
    }, torch.tensor([[token for _, token in told]], dtype=torch.long, device=device)

"""Rows that begin alike as one tree of tokens: what several rows begin with is computed once.

Token i of a tree stands at the depth that it has in its rows and sees its ancestors and itself, so that a model with causal
attention computes for it what it would compute in each row; only rounding differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qpeft.errors import ConfigError
from qpeft.training.data.tokenization import IGNORED
from qpeft.training.model.label_logits import keeps_logits, labelled, plain_loss

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

    from qpeft.training.recipe.config import RunConfig

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


def demand_trees(model: Any, option: str = "share_prefixes") -> None:
    """Check that the rows of a batch can share a sequence.

    Args:
        model: the base model, or one with an adapter.
        option: the recipe's option that asks for it, for the message.

    Raises:
        ConfigError: the model cannot do that.
    """
    found = _model_obstacle(model)
    if found is not None:
        raise ConfigError(found[0], field=f"training.{option}", expected=found[1], hint="false")


def shares_prefixes(model: Any) -> bool:
    """Whether held-out rows of a batch can share prefixes in this model: one without weights in 4 or 8 bits that `demand_trees`
    accepts."""
    return _model_obstacle(model) is None and not getattr(model, "is_quantized", False)


def training_obstacle(config: RunConfig, model: Any) -> str | None:
    """Why `training.share_prefixes: auto` is off in training; None where it is on.

    Args:
        config: the recipe.
        model: the base model with the adapter on it.
    """
    section, found = config.training, _model_obstacle(model)
    dropout = any(module.p > 0 for module in model.modules() if type(module).__name__ == "Dropout")
    reasons = {
        "packing": section.packing,
        "label_smoothing_factor": section.label_smoothing_factor > 0,
        "a backend's work is planned row by row": config.backend is not None,
        "neftune_noise_alpha depends on the length of a row": section.neftune_noise_alpha is not None,
        "dropout would be the same in all rows": dropout or getattr(model.config, "attention_dropout", 0.0) > 0,
        "torch_compile": section.torch_compile,
        "quantized weights": getattr(model, "is_quantized", False),
        found[0] if found else "": found is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _model_obstacle(model: Any) -> tuple[str, str] | None:
    """(why the rows of a batch cannot share a sequence in this model, what is expected of one)."""
    kind = model.config.model_type
    if not (keeps_logits(model) and plain_loss(model)):
        expected = "a model whose loss is the cross-entropy of its labelled tokens, and which takes logits_to_keep"
        return f"{kind} has a loss of its own, or no logits to choose from", expected
    if not takes_trees(model):
        attention = getattr(model.config, "_attn_implementation", None)
        expected = f"one of {', '.join(_FAMILIES)} without sliding windows, attention {' or '.join(_IMPLEMENTATIONS)}"
        return f"{kind} with {attention} attention takes no trees", expected
    for adapter in getattr(model, "peft_config", {}).values():
        if adapter.is_prompt_learning or adapter.is_adaption_prompt:
            return f"{adapter.peft_type.value} changes the attention mask", "an adapter of weights"
    return None


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to attention scores: 0 where it is seen, else the type's least number.

    Args:
        seen: which positions each position sees.
        dtype: type of the mask.
    """
    import torch

    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def narrowed(batch: dict[str, Any], model: Any, share_prefixes: bool) -> tuple[dict[str, Any], Tensor]:
    """Model inputs for logits at labelled positions only, and the target tokens of those logits.

    Rows by themselves have a column for each place of a label in some row, `(B, C)`. As a tree of prefixes they are one row, `(1,
    K)`, with a column for each label.

    Args:
        batch: `input_ids`, `attention_mask` and `labels`, `(B, T)` each.
        model: the language model.
        share_prefixes: make a tree of the rows where that is less work. Each token of the tree may see each, so long rows are
            cheaper by themselves.

    Returns:
        The inputs, and the target token of each logit.
    """
    if share_prefixes:
        rows = unpadded_rows(batch)
        tree, hidden = TokenTree.of([ids for ids, _ in rows]), int(model.config.hidden_size)
        count, longest = batch["input_ids"].shape
        if _work(1, len(tree.ids), hidden) < _work(count, longest, hidden):
            return _as_tree(tree, [labels for _, labels in rows], batch["input_ids"].device, model.dtype)
    columns, following = labelled(batch["labels"])
    return {**{name: value for name, value in batch.items() if name != "labels"}, "logits_to_keep": columns}, following


def unpadded_rows(batch: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each row, without padding."""
    given, masks, labels = (batch[name].tolist() for name in ("input_ids", "attention_mask", "labels"))
    return [
        ([i for i, m in zip(ids, mask, strict=True) if m], [label for label, m in zip(told, mask, strict=True) if m])
        for ids, mask, told in zip(given, masks, labels, strict=True)
    ]


def _work(rows: int, length: int, hidden_size: int) -> float:
    """Of rows of one length, in tokens of a model without attention. A pair of tokens in attention costs about 1 / hidden_size of
    one: measured on a CPU, 1/480 with 576."""
    return rows * length * (1 + length / hidden_size)


def _as_tree(
    tree: TokenTree, labels: Sequence[Sequence[int]], device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Any], Tensor]:
    import torch

    after = [(path[t - 1], row[t]) for row, path in zip(labels, tree.paths, strict=True) for t in range(1, len(row))]
    told = [pair for pair in after if pair[1] != IGNORED]
    return {
        "input_ids": torch.tensor([tree.ids], device=device),
        "position_ids": torch.tensor([tree.depths()], device=device),
        "attention_mask": additive(torch.from_numpy(tree.seen()).to(device), dtype)[None, None],
        "logits_to_keep": torch.tensor([place for place, _ in told], dtype=torch.long, device=device),
    }, torch.tensor([[token for _, token in told]], dtype=torch.long, device=device)

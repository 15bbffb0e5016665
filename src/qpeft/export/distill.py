"""A LoRA that does what an adapter does: fitted layer by layer on calibration text, then trained towards the adapter's logits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qpeft.adapters.low_rank import LowRank, Moments, added, fitted
from qpeft.adapters.peft.layer import layer_shape
from qpeft.progress import counted
from qpeft.training.data.tokenization import collator
from qpeft.training.model.held_out_loss import Rows

MOMENT_BYTES = 4 * 2**30  # as many layers are fitted in one pass over the text as keep their moments within this


def padded(rows: Rows, tokenizer: Any, batch_size: int, device: Any) -> Iterator[dict[str, Any]]:
    """`input_ids` and `attention_mask` of the rows in their order, padded batch by batch.

    Args:
        rows: tokenised rows.
        tokenizer: its tokenizer.
        batch_size: rows in a batch.
        device: torch device of the result.

    Yields:
        `input_ids` and `attention_mask`, `(batch, tokens)` each.
    """
    collate = collator(tokenizer)
    for start in range(0, len(rows), batch_size):
        batch = collate([dict(row) for row in rows[start : start + batch_size]])
        yield {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}


def fit_layers(
    model: Any, layers: Mapping[str, Any], adapter: str, rows: Rows, tokenizer: Any, *, rank: int, bias: bool, batch_size: int
) -> dict[str, LowRank]:
    """The least-squares LoRA of each layer for the inputs it sees when the adapted model reads the rows; dropout off.

    Args:
        model: the adapted model; set to evaluation mode.
        layers: the adapted layers by name.
        adapter: name of the adapter.
        rows: tokenised calibration rows.
        tokenizer: its tokenizer.
        rank: rank of every LoRA.
        bias: fit a constant to each layer as well.
        batch_size: rows in a batch.

    Returns:
        The LoRA of each layer by name.
    """
    import torch

    found: dict[str, LowRank] = {}
    model.eval()
    whole = model.get_base_model()
    reader = whole.base_model if set(layers.values()) <= set(whole.base_model.modules()) else whole  # mostly without the head
    for group in _groups(layers):
        read = _Read()
        taps = {name: _Tap(layer, adapter, model.device, read) for name, layer in group.items()}
        try:
            with torch.no_grad():
                batches = list(padded(rows, tokenizer, batch_size, model.device))
                for batch in counted(batches, "reading calibration rows, batch"):
                    read.mask = batch["attention_mask"].bool()
                    reader(**batch, use_cache=False)
        finally:
            for tap in taps.values():
                tap.handle.remove()
        found |= {name: fitted(tap.moments, rank, bias=bias) for name, tap in taps.items()}
    return found


class _Read:
    """The tokens of the batch that are no padding, and the inputs that several layers share, with their second moments."""

    def __init__(self) -> None:
        self.mask: Any = None
        self._inputs: Any = None
        self._found: tuple[Any, Any] = (None, None)

    def of(self, inputs: Any) -> tuple[Any, Any]:
        """(inputs of the tokens `(n, d)`, their `x.T @ x` in float64); computed once for the layers that read one tensor."""
        if inputs is not self._inputs:
            masked = inputs.shape[:-1] == self.mask.shape
            seen = inputs[self.mask] if masked else inputs.reshape(-1, inputs.shape[-1])
            exact = seen.double()
            self._inputs, self._found = inputs, (seen, exact.T @ exact)
        return self._found


class _Tap:
    """Gathers the moments of one layer while the model reads."""

    def __init__(self, layer: Any, adapter: str, device: Any, read: _Read) -> None:
        d_in, d_out, _ = layer_shape(layer.get_base_layer())
        self.adapter, self.moments, self.read = adapter, Moments(d_in, d_out, device), read
        self.handle = layer.register_forward_pre_hook(self)

    def __call__(self, layer: Any, inputs: tuple[Any, ...]) -> None:
        seen, second = self.read.of(inputs[0])
        self.moments.add(seen, added(layer, self.adapter, seen), second)


def _groups(layers: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    group: dict[str, Any] = {}
    used = 0
    for name, layer in layers.items():
        d_in, d_out, _ = layer_shape(layer.get_base_layer())
        size = 8 * d_in * (d_in + d_out)
        if group and used + size > MOMENT_BYTES:
            yield group
            group, used = {}, 0
        group[name] = layer
        used += size
    if group:
        yield group


def train_towards(
    student: Any, teacher: Any, rows: Rows, tokenizer: Any, *, steps: int, learning_rate: float, batch_size: int, seed: int
) -> list[float]:
    """Train the student's LoRA by AdamW to give the teacher's logits.

    The learning rate falls linearly to zero. Nothing but `lora_` weights is trained.

    Args:
        student: model with a LoRA, changed in place.
        teacher: the adapted model.
        rows: tokenised calibration rows.
        tokenizer: their tokenizer.
        steps: optimizer steps, one batch each.
        learning_rate: of the first step.
        batch_size: rows in a batch.
        seed: of the order of rows.

    Returns:
        The loss of each step: mean `KL(teacher || student)`, nats/token.
    """
    import torch

    for name, parameter in student.named_parameters():
        parameter.requires_grad_("lora_" in name)
    optimizer = torch.optim.AdamW((p for p in student.parameters() if p.requires_grad), lr=learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    batches: Iterator[dict[str, Any]] = iter(())
    student.eval()  # as it will be used; LoRA trains the same
    for step in counted(range(steps), "distilling, step"):
        batch = next(batches, None)
        if batch is None:
            order = torch.randperm(len(rows), generator=generator).tolist()
            batches = padded([rows[i] for i in order], tokenizer, batch_size, student.device)
            batch = next(batches)
        mask = batch["attention_mask"].bool()
        with torch.no_grad():
            wanted = teacher(**batch, use_cache=False).logits[mask].float().log_softmax(-1)
        got = student(**batch, use_cache=False).logits[mask].float().log_softmax(-1)
        loss = torch.nn.functional.kl_div(got, wanted, log_target=True, reduction="batchmean")
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


def distance(model: Any, other: Any, rows: Rows, tokenizer: Any, *, batch_size: int) -> dict[str, float]:
    """How far `other` is from `model` on the rows, over every position that is not padding.

    Args:
        model: the model to compare with.
        other: the other model.
        rows: tokenised rows.
        tokenizer: their tokenizer.
        batch_size: rows in a batch.

    Returns:
        max_logit_difference: the largest `|logit - logit|`. kl: mean `KL(model || other)`, nats/token.
        top_token_agreement: share of positions with the same most likely token, 0..1.
    """
    import torch

    largest, kl, same, count = 0.0, 0.0, 0, 0
    with torch.inference_mode():
        for batch in counted(list(padded(rows, tokenizer, batch_size, model.device)), "comparing logits, batch"):
            mask = batch["attention_mask"].bool()
            a, b = (m(**batch, use_cache=False).logits[mask].float() for m in (model, other))
            difference = float((a - b).abs().max())
            largest = difference if math.isnan(difference) else max(largest, difference)
            kl += float(torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="sum"))
            same += int((a.argmax(-1) == b.argmax(-1)).sum())
            count += len(a)
    return {"max_logit_difference": largest, "kl": max(kl / count, 0.0), "top_token_agreement": same / count}

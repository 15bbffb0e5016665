"""The compressed model: the rank that was asked for, and less error of the outputs than truncating the weights gives."""

from __future__ import annotations

import copy

import torch
from benchmarks.compressed_model import compress, rank_of
from torch import nn


def test_outputs_are_closer_than_with_the_weights_alone() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 16, bias=False).double()
    x = torch.randn(400, 24, dtype=torch.float64) * torch.logspace(-2, 1, 24, dtype=torch.float64)
    wanted, plain = layer(x).detach(), copy.deepcopy(layer)
    before, after = compress({"a": layer}, {"a": x.T @ x}, 0.5)
    compress({"a": plain}, {"a": torch.eye(24, dtype=torch.float64)}, 0.5)
    rank = rank_of(wanted.new_empty(16, 24), 0.5)
    assert (before, after) == (384, rank * 40)
    assert after <= 0.5 * before
    assert torch.linalg.matrix_rank(layer.weight.detach()) == rank
    least = torch.linalg.svdvals(wanted)[rank:].norm()  # of any matrix of that rank in the outputs' place
    assert least * 0.999 <= (layer(x) - wanted).norm() < 1.01 * least
    assert (plain(x) - wanted).norm() > 2 * least

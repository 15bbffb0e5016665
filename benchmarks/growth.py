"""How cost grows: `python -m benchmarks.growth --measure --out docs/benchmarks/growth.jsonl --page docs/benchmarks/growth.md`.

Exponents of power laws, fitted by least squares to the logarithms of least CPU times, with 95% intervals. One size varies at a
time: of a circuit, of QTHA's change to one layer, or of the layer itself, each forward and back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import qpeft
from benchmarks import circuits, harness, models, training
from benchmarks.kernel_limit import best_ms
from qpeft.adapters.methods.qtha import QTHA
from qpeft.circuits.simulator import simulate

WIDTH, TOKENS = 576, 512  # of SmolLM2-135M; 4 x 128
MODEL_WIDTHS = (128, 192, 256, 384, 512, 640)  # with a layer for each 64


def circuit_step(n: int, layers: int, tokens: int) -> Callable[[], object]:
    """A circuit of QTHA, values and gradients."""
    circuit, x, angles, weights = circuits.problem(("qtha", n, layers, tokens))
    run = simulate.vjp(circuit)
    return lambda: run(x, angles, weights)


def adapter_step(r: int, layers: int, tokens: int, width: int, modules: int = 1) -> Callable[[], object]:
    """QTHA's change to square layers of that width, one after the other, forward and back."""
    deltas = [QTHA(width, width, qpeft.QTHAConfig(r=r, n_layers=layers, init_weights=False), {}) for _ in range(modules)]
    x, grad = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)

    def step() -> None:
        for delta in deltas:
            torch.autograd.backward(delta(x), grad)
            delta.zero_grad()

    return step


def layer_step(tokens: int, width: int) -> Callable[[], object]:
    """A frozen square layer, forward and back to its inputs: what an adapter adds to."""
    weight, x, grad = torch.randn(width, width), torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)
    return lambda: torch.autograd.backward(torch.nn.functional.linear(x, weight), grad)


def model_step(width: int, arm: str) -> tuple[int, Callable[[], object]]:
    """Parameters of a Llama of that width, deeper as it is wider, and a training step of an adapter on its q_proj and v_proj."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, heads = width // 64, width // 64
    shape = {"hidden_size": width, "intermediate_size": 8 * width // 3, "num_hidden_layers": layers, "num_attention_heads": heads}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=4096, tie_word_embeddings=True, **shape))
    count = sum(p.numel() for p in base.parameters())
    return count, training.step_of(models.adapted(base, models.Arm(arm).config()), 4, 64)


def model_sizes() -> dict[int, int]:
    """Width of the model by its number of parameters."""
    return {model_step(width, "lora:4")[0]: width for width in MODEL_WIDTHS}


def sweeps() -> Iterator[tuple[str, str, Sequence[int], Callable[[int], Callable[[], object]]]]:
    """What varies, what stays, the sizes, and the step of a size."""
    yield (
        "circuit: amplitudes, 2^qubits",
        "L=2, 512 samples",
        [2**n for n in range(5, 12)],
        lambda s: circuit_step(s.bit_length() - 1, 2, 512),
    )
    yield (
        "circuit: qubits 2 to 5, amplitudes",
        "L=2, 512 samples",
        [4, 8, 16, 32],
        lambda s: circuit_step(s.bit_length() - 1, 2, 512),
    )
    yield "circuit: layers", "8 qubits, 512 samples", [1, 2, 3, 4, 6, 8, 12], lambda s: circuit_step(8, s, 512)
    yield "circuit: samples", "4 qubits, L=1", [64, 256, 1024, 4096, 16384], lambda s: circuit_step(4, 1, s)
    yield "circuit: samples ", "8 qubits, L=2", [64, 128, 256, 512, 1024], lambda s: circuit_step(8, 2, s)
    yield "adapter: tokens", f"r=4, L=1, width {WIDTH}", [128, 256, 512, 1024, 2048], lambda s: adapter_step(4, 1, s, WIDTH)
    yield "adapter: rank, L=1", f"{TOKENS} tokens, width {WIDTH}", [2, 3, 4, 5, 6, 8], lambda s: adapter_step(s, 1, TOKENS, WIDTH)
    yield "adapter: rank, L=r", f"{TOKENS} tokens, width {WIDTH}", [2, 3, 4, 5, 6, 8], lambda s: adapter_step(s, s, TOKENS, WIDTH)
    yield (
        "adapter: modules",
        f"r=4, L=1, {TOKENS} tokens, width {WIDTH}",
        [1, 2, 4, 8],
        lambda s: adapter_step(4, 1, TOKENS, WIDTH, s),
    )
    yield (
        "adapter: width of the model",
        f"r=4, L=1, {TOKENS} tokens",
        [256, 512, 1024, 2048],
        lambda s: adapter_step(4, 1, TOKENS, s),
    )
    yield "frozen layer: width of the model", f"{TOKENS} tokens", [256, 512, 1024, 2048], lambda s: layer_step(TOKENS, s)
    widths = model_sizes()
    for arm in ("lora:4", "qtha:4:1", "lora:8", "qtha:8:8"):
        step = functools.partial(lambda s, arm: model_step(widths[s], arm)[1], arm=arm)
        yield f"training step, {arm}: parameters of the model", "4 x 64 tokens", sorted(widths), step


def exponent(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float, float]:
    """Slope of log time against log size, and half its 95% interval, and R^2."""
    fit = stats.linregress(np.log(sizes), np.log(times))
    half = stats.t.ppf(0.975, len(sizes) - 2) * fit.stderr
    return float(fit.slope), float(half), float(fit.rvalue**2)


def page(records: list[dict[str, Any]]) -> str:
    machine = next(record for record in records if record["kind"] == "machine")
    lines = [
        "# How cost grows",
        "",
        "How the time of a forward and backward pass grows with a size: the exponent k of time ~ size^k.",
        "",
        "* Made by `python -m benchmarks.growth --measure --out docs/benchmarks/growth.jsonl --page docs/benchmarks/growth.md`.",
        f"* {machine['cpu']} ({', '.join(machine['instructions'])}), one thread, float32.",
        f"* Load average before the run: {machine['load_before'][0]:.1f}. Times: least CPU time of the process, ms.",
        "* Exponent: by least squares on logarithms, with its 95% interval. The fixed cost of a call lowers it at small sizes;",
        "  caches that are too small raise it at large ones.",
        "* Adapter: QTHA on one square layer, published sizes. Frozen layer: the product with the layer's own weight.",
        "* Training step: Llama models 128 to 640 wide, one layer per 64 of width, adapters on q_proj and v_proj.",
        "",
        "| size that grows | held fixed | range of the size | times, ms | exponent | R² |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        if record["kind"] != "sweep":
            continue
        slope, half, r2 = exponent(record["sizes"], record["times_ms"])
        times = ", ".join(f"{t:.3g}" for t in record["times_ms"])
        sizes = f"{record['sizes'][0]:,} to {record['sizes'][-1]:,}"
        lines.append(f"| {record['what'].strip()} | {record['fixed']} | {sizes} | {times} | {slope:.2f} ± {half:.2f} | {r2:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = harness.timing_options(__doc__, Path("growth.jsonl"))
    if options.page is None or options.measure:
        harness.keep_to_one_core()
        torch.manual_seed(0)
        records = harness.Records(options.out)
        records.add(harness.machine(1))
        for what, fixed, sizes, make in sweeps():
            times = [best_ms(make(size), options.seconds) for size in sizes]
            records.add({"kind": "sweep", "what": what, "fixed": fixed, "sizes": list(sizes), "times_ms": times})
    if options.page is not None:
        options.page.write_text(page(harness.read(options.out)), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Trained Cayley blocks run as circuits: `python -m benchmarks.blocks_on_chip`, after `benchmarks.recovery`.

An orthogonal 4 x 4 block of determinant 1 is a circuit of two qubits with two CNOTs (Vatan and Williams, arXiv quant-ph/0308006).
It acts on amplitudes. Outcomes are squares, so ten circuits per block tell its entries: on the four basis states, and on the six
sums of two. Row i of the block, u, gives `u u^T`, whose largest eigenvector is the row; its diagonal entry is taken as positive.
The held-out loss is then that of the model with the blocks as they were measured. Lines go to `--out`.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import harness
from benchmarks.recovery import CAYLEY, COMPRESSED, Recovery, rate_of
from qpeft.backends.registry import get_backend
from qpeft.circuits.ir import Angle, Circuit, Op

FloatArray = npt.NDArray[np.float64]
PLACES = {"simulator": "no noise", "emulator:wukong-72": "Wukong-72, emulated"}
SHOTS: tuple[int | None, ...] = (100, 1_000, 10_000, None)
READINGS = ("as measured", "nearest orthogonal")
PAIRS = tuple(itertools.combinations(range(4), 2))
H, S, CNOT = (
    np.array([[1, 1], [1, -1]]) / 2**0.5,
    np.diag([1, 1j]),
    np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]]),
)
MAGIC = CNOT @ np.kron(np.eye(2), H) @ np.kron(S, S)  # S on both, H on qubit 1, CNOT from qubit 1 to qubit 0


def angles_of(block: FloatArray) -> FloatArray:
    """The six angles of a block's circuit: RZ, RY, RZ of either qubit, in the order in which they act.

    Args:
        block: orthogonal 4 x 4, determinant 1.
    """
    product = MAGIC @ block @ MAGIC.conj().T  # A (x) B
    table = product.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
    u, s, v = np.linalg.svd(table)
    if s[1] > 1e-6:
        raise ValueError(f"not orthogonal with determinant 1: {block.tolist()}")
    return np.concatenate([_zyz(u[:, 0].reshape(2, 2)), _zyz(v[0].reshape(2, 2))])


def _zyz(matrix: npt.NDArray[np.complex128]) -> FloatArray:
    """Angles (first, second, third) with `RZ(third) RY(second) RZ(first)` equal to a unitary up to its phase and size."""
    unit = matrix / np.sqrt(complex(np.linalg.det(matrix)))
    second = 2 * np.arctan2(abs(unit[1, 0]), abs(unit[0, 0]))
    total, difference = 2 * np.angle(unit[1, 1]), 2 * np.angle(unit[1, 0])
    return np.array([(total - difference) / 2, second, (total + difference) / 2])


def block_circuit(prepared: tuple[int, ...]) -> Circuit:
    """A block's circuit on a basis state, or on the sum of two.

    Args:
        prepared: the numbers of one or two basis states.
    """
    first, last = (format(state, "02b") for state in (prepared[0], prepared[-1]))
    ops = []
    different = [k for k in range(2) if first[k] != last[k]]
    if different:
        ops.append(Op("h", (different[0],)))
        ops += [Op("cx", (different[0], k)) for k in different[1:]]
    base = last if different and first[different[0]] == "1" else first  # the state with 0 on the qubit that H splits
    ops += [Op("x", (k,)) for k in range(2) if base[k] == "1" and k not in different[:1]]
    ops += [Op("s", (0,)), Op("s", (1,)), Op("h", (1,)), Op("cx", (1, 0))]
    for qubit, gate in itertools.product(range(2), range(3)):
        ops.append(Op("ry" if gate == 1 else "rz", (qubit,), Angle(3 * qubit + gate)))
    ops += [Op("cx", (1, 0)), Op("h", (1,)), Op("sdg", (0,)), Op("sdg", (1,))]
    return Circuit(2, tuple(ops), 6, 6)


def measured(blocks: FloatArray, place: str, shots: int | None, seed: int) -> FloatArray:
    """Blocks `(n, 4, 4)` as they are estimated from outcomes, without any use of their being orthogonal."""
    backend = get_backend(place)
    rows = np.stack([angles_of(block) for block in blocks])
    states = [*((j,) for j in range(4)), *PAIRS]
    outcomes = {
        state: backend.compile(block_circuit(state)).run(rows, shots, None if shots is None else 100 * seed + k).probabilities()
        for k, state in enumerate(states)
    }
    squares = np.zeros((len(blocks), 4, 4, 4))  # block, row i, and u u^T
    for j in range(4):
        squares[:, :, j, j] = outcomes[j,]
    for j, k in PAIRS:
        squares[:, :, j, k] = squares[:, :, k, j] = outcomes[j, k] - (outcomes[j,] + outcomes[k,]) / 2
    values, vectors = np.linalg.eigh(squares)
    found = np.sqrt(np.maximum(values[..., -1:], 0.0)) * vectors[..., -1]
    signs = np.sign(np.einsum("nii->ni", found))
    result: FloatArray = found * np.where(signs == 0, 1.0, signs)[..., None]
    return result


def nearest_orthogonal(blocks: FloatArray) -> FloatArray:
    """The orthogonal matrices of least distance."""
    u, _, v = np.linalg.svd(blocks)
    return np.asarray(u @ v)


def work(rows: Path, tuned: Path, out: Path, seed: int) -> None:
    """Every measurement that `out` does not hold, of the blocks trained with the tuned learning rate."""
    from qpeft.adapters.methods.cayley import CayleyUnitary
    from qpeft.adapters.peft.layer import DeltaLayer

    key = ("place", "shots", "reading")
    known = {tuple(line[name] for name in key) for line in harness.read(out)} if out.exists() else set()
    lines = harness.Records(out, keep=True)
    rate = rate_of(CAYLEY, {(x["arm"], x["rate"]): x["loss"] for x in harness.read(tuned) if x["kind"] == "tuning"})
    if rate is None:
        raise ValueError(f"{tuned} has no learning rate of {CAYLEY}")
    task = Recovery(rows, COMPRESSED)
    model = task.trained(CAYLEY, rate, seed)
    layers: list[tuple[Any, CayleyUnitary]] = [
        (layer.get_base_layer(), delta)
        for layer in model.modules()
        if isinstance(layer, DeltaLayer)
        for delta in layer.deltas.values()
        if isinstance(delta, CayleyUnitary)
    ]
    weights = [base.weight.detach().clone() for base, _ in layers]
    blocks = np.concatenate([(d.matrices().detach().double() + torch.eye(4, dtype=torch.float64)).numpy() for _, d in layers])

    def loss_with(found: FloatArray) -> float:
        """Held-out loss with these blocks in the weights."""
        at = 0
        for (base, delta), weight in zip(layers, weights, strict=True):
            mine = [torch.from_numpy(block).to(weight.dtype) for block in found[at : at + delta.blocks]]
            at += delta.blocks
            base.weight = torch.nn.Parameter(weight @ torch.block_diag(*mine), requires_grad=False)  # type: ignore[no-untyped-call]
        with model.disable_adapter():
            return task.held_out(model, "test")

    def add(place: str, shots: int | None, reading: str, found: FloatArray) -> None:
        line = {
            "kind": "blocks",
            "seed": seed,
            "rate": rate,
            "blocks": len(blocks),
            "place": place,
            "shots": shots,
            "reading": reading,
        }
        line |= {"error": float(np.sqrt(((found - blocks) ** 2).mean())), "loss": loss_with(found)}
        if place.startswith("emulator:") and shots is not None:
            line["chip_s"] = get_backend(place).estimate(len(blocks) * (4 + len(PAIRS)), shots)
        lines.add(line)
        print(line, flush=True)

    for name, found in (("no blocks", np.tile(np.eye(4), (len(blocks), 1, 1))), ("exact", blocks)):
        if (name, None, "") not in known:
            add(name, None, "", found)
    for place, shots in itertools.product(PLACES, SHOTS):
        wanted = [reading for reading in READINGS if (place, shots, reading) not in known]
        if (place == "simulator" and shots is None) or not wanted:
            continue  # the simulator's exact outcomes are the blocks themselves
        found = measured(blocks, place, shots, seed)
        for reading in wanted:
            add(place, shots, reading, nearest_orthogonal(found) if reading == READINGS[1] else found)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("data/recovery-text"))
    parser.add_argument("--tuned", type=Path, default=Path("docs/benchmarks/recovery.jsonl"), help="records of benchmarks.recovery")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/blocks-on-chip.jsonl"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(given)
    work(arguments.rows, arguments.tuned, arguments.out, arguments.seed)


if __name__ == "__main__":
    main()

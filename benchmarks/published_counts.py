"""`python -m benchmarks.published_counts`: counts published for the 180-qubit chip vs. the emulator's interval for them.

The vendor's qubits and calibration of that day are not known. So calibrations are drawn from the published ranges (as the shipped
file, other seeds), the circuit is put on every place that fits without swaps, places are ranked by the product of their
fidelities, and 1,000 shots are drawn on each. The interval is the central 99% of what comes out.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt
import torch

from qpeft.backends.emulator.backend import EmulatorBackend, probabilities_of
from qpeft.backends.emulator.chip import Chip
from qpeft.backends.emulator.native_gates import to_native
from qpeft.backends.emulator.routing import InteractionGraph, placements
from qpeft.backends.emulator.synthetic import wukong_180
from qpeft.circuits.ir import Circuit, Op

BELL = Circuit(2, (Op("h", (0,)), Op("cx", (0, 1))))
GHZ = Circuit(3, (Op("h", (0,)), Op("cx", (0, 1)), Op("cx", (1, 2))))
SHOTS = 1000
# 457/27/27/489 for the Bell state, 453 + 449 for the ends of GHZ-3; None where nothing was published
PUBLISHED: dict[str, tuple[Circuit, dict[str, int]]] = {
    "Bell": (BELL, {"00": 457, "01": 27, "10": 27, "11": 489, "00 + 11": 946}),
    "GHZ-3": (GHZ, {"000": 453, "111": 449, "000 + 111": 902}),
}


def tables(circuit: Circuit, chip: Chip) -> npt.NDArray[np.float64]:
    """Exact outcome probabilities on every place, best place first: `(places, 2^n)`."""
    shape = InteractionGraph.of(to_native(circuit), range(circuit.n_qubits))
    places = sorted(place for root in chip.live_qubits for place in placements(shape, chip, chip.live_qubits, roots=[root]))
    compiled = [EmulatorBackend(chip, layout=qubits).compile(circuit) for _, qubits in places]
    rows = [torch.zeros(1, 0, dtype=torch.float64)] * len(compiled)
    return np.asarray(torch.cat(probabilities_of(compiled, rows)).numpy())


def intervals(circuit: Circuit, seeds: int, best: float, level: float = 0.99) -> dict[str, tuple[float, float]]:
    """Central interval of counts of every outcome, and of all zeros and all ones together, over the best part of all places."""
    rng = np.random.default_rng(0)
    drawn = []
    for seed in range(seeds):
        found = tables(circuit, wukong_180(seed))
        found = found[: max(1, round(best * len(found)))]
        drawn.append(rng.multinomial(SHOTS, np.repeat(found, 20, axis=0)))
    counts = np.concatenate(drawn)
    n = circuit.n_qubits
    columns = {format(i, f"0{n}b"): counts[:, i] for i in range(2**n)}
    columns["0" * n + " + " + "1" * n] = counts[:, 0] + counts[:, -1]
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {name: tuple(np.quantile(column, tails).tolist()) for name, column in columns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="calibrations drawn")
    seeds = parser.parse_args().seeds
    shares = (1.0, 0.25, 0.05)
    heads = ["all places" if share == 1 else f"best {share:.0%} of places" for share in shares]
    print("| state | outcome | published | " + " | ".join(heads) + " |")
    print("|---|---|---|" + "---|" * len(shares))
    for name, (circuit, published) in PUBLISHED.items():
        found = [intervals(circuit, seeds, share) for share in shares]
        for outcome, count in published.items():
            cells = [
                f"{low:.0f}-{high:.0f}" + ("" if low <= count <= high else " (outside)")
                for low, high in (f[outcome] for f in found)
            ]
            print(f"| {name} | {outcome} | {count} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

"""Circuits of different users on one chip at once.

A job is a tenant if it is one circuit (`rows == 1`) with shots and no seed, and its user did not say `exclusive`. When tenants of
more than one user meet in a lease they are placed on disjoint qubits and run as one program; each gets its own qubits' outcomes,
and its result says which qubits those were. Sweeps run alone, so that all rows of a gradient meet the same qubits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from qpeft.backends.base import Backend, Counts, FloatArray
from qpeft.backends.emulator.packing import PackedProgram, pack
from qpeft.circuits.ir import Circuit
from qpeft.service.workers.messages import LeasedJob

MAX_TENANTS = 24  # packed at once; placing more takes longer than it saves
KEPT = 64  # placements remembered


def tenants(jobs: Sequence[LeasedJob]) -> list[list[LeasedJob]]:
    """The jobs that may share a chip, those of equal shots together; empty unless two users meet."""
    by_shots: dict[int, list[LeasedJob]] = {}
    for job in jobs:
        if job.rows == 1 and job.shots is not None and job.seed is None and not job.exclusive:
            by_shots.setdefault(job.shots, []).append(job)
    together = [group[k : k + MAX_TENANTS] for group in by_shots.values() for k in range(0, len(group), MAX_TENANTS)]
    return [group for group in together if len({job.owner for job in group}) > 1]


class SharedChip:
    """Runs tenants on one chip, that of a backend with `packs_circuits`."""

    def __init__(self, backend: Backend) -> None:
        assert backend.chip is not None
        self.backend, self.chip = backend, backend.chip
        self._place = functools.lru_cache(KEPT)(self._pack)

    def _pack(self, circuits: tuple[Circuit, ...]) -> list[PackedProgram]:
        return pack(circuits, self.chip)

    def places(self, circuits: Sequence[Circuit]) -> list[tuple[int, ...]]:
        """The chip's qubits of each circuit when these run together."""
        order = sorted(range(len(circuits)), key=lambda i: circuits[i].id)
        found: dict[int, tuple[int, ...]] = {}
        for program in self._place(tuple(circuits[i] for i in order)):
            for t, place in zip(program.tenants, program.places, strict=True):
                found[order[t]] = tuple(place.qubits[q] for q in place.measured)
        return [found[i] for i in range(len(circuits))]

    def run(
        self, circuits: Sequence[Circuit], params: Sequence[FloatArray], shots: int, seed: int | None = None
    ) -> list[tuple[Counts, tuple[int, ...]]]:
        """Run circuits on disjoint qubits, together where they fit.

        Args:
            circuits: the circuits.
            params: parameters of each circuit, `(1, n_params)`, radians.
            shots: repetitions of each circuit.
            seed: equal seeds give equal outcomes.

        Returns:
            For each circuit its counts, and the chip's qubit of each of its own.

        Raises:
            BackendError: a circuit does not fit on the chip.
        """
        order = sorted(range(len(circuits)), key=lambda i: circuits[i].id)  # equal companies are placed once
        found: dict[int, tuple[Counts, tuple[int, ...]]] = {}
        seeds = np.random.SeedSequence(seed)
        for program in self._place(tuple(circuits[i] for i in order)):
            members = [order[t] for t in program.tenants]
            rows = program.params([params[i] for i in members])
            (draw,) = seeds.spawn(1)
            counts = self.backend.compile_packed(program).run(rows, shots, int(draw.generate_state(1, np.uint64)[0] >> 1))
            for i, place, part in zip(members, program.places, program.split(counts), strict=True):
                found[i] = part, tuple(place.qubits[q] for q in place.measured)
        return [found[i] for i in range(len(circuits))]

"""Results kept on disk, so that no circuit is paid for twice. One SQLite file; opt-in.

A result's key is the SHA-256 of everything it depends on: backend, calibration, circuit id, parameters to the last bit, and shots,
None for exact. So exact results and results of shots never meet, nor those of two calibrations. A cached result of shots is the
same sample again, not a new one: keep a cache to evaluate, not to average.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from qpeft.backends.base import Backend, Counts, FloatArray
from qpeft.errors import BackendError

FORMAT = 1


class ResultCache:
    """A file of results. Several processes may use it at once."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as database:
            database.execute("CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, bits BLOB, weights BLOB) WITHOUT ROWID")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
                yield database
        except sqlite3.DatabaseError as error:
            raise BackendError("the result cache cannot be used", value=f"{self.path}: {error}", hint="another file") from error

    @staticmethod
    def keys(backend: Backend, circuit_id: str, rows: FloatArray, shots: int | None) -> list[bytes]:
        """One key for each row of parameters.

        Args:
            backend: its name and calibration are part of the key.
            circuit_id: `Circuit.id`.
            rows: parameters `(batch, n_params)`, radians.
            shots: repetitions of each row; None for exact results.
        """
        head = json.dumps([FORMAT, backend.name, backend.calibration, circuit_id, shots]).encode()
        rows = rows + 0.0  # minus zero is zero
        return [hashlib.sha256(head + row.astype("<f8").tobytes()).digest() for row in rows]

    def load(self, keys: Sequence[bytes], n_qubits: int, shots: int | None) -> list[Counts | None]:
        """Look up results.

        Args:
            keys: from `keys`.
            n_qubits: number of qubits of the circuit.
            shots: repetitions of each row; None for exact results.

        Returns:
            For each key a batch of one row, or None if the file has no result.

        Raises:
            BackendError: the file is no usable cache.
        """
        found: list[Counts | None] = []
        with self._open() as database:
            for key in keys:
                row = database.execute("SELECT bits, weights FROM results WHERE key = ?", (key,)).fetchone()
                found.append(None if row is None else _counts(n_qubits, shots, *row))
        return found

    def store(self, keys: Sequence[bytes], counts: Counts) -> None:
        """Store results. A key that is there already keeps its result.

        Args:
            keys: from `keys`.
            counts: one row for each key.
        """
        rows = [
            (key, np.packbits(bits, axis=1).tobytes(), weights.astype("<f8").tobytes())
            for key, (bits, weights) in zip(keys, counts, strict=True)
        ]
        with self._open() as database:
            database.executemany("INSERT OR IGNORE INTO results VALUES (?, ?, ?)", rows)


def _counts(n_qubits: int, shots: int | None, bits: bytes, weights: bytes) -> Counts:
    packed = np.frombuffer(bits, np.uint8).reshape(-1, -(-n_qubits // 8))
    unpacked = np.unpackbits(packed, axis=1, count=n_qubits).astype(np.bool_)
    return Counts.sparse(n_qubits, [(unpacked, np.frombuffer(weights, "<f8"))], shots)

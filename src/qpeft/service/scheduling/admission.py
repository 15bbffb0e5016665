"""From a request to a submission: program read, parameters checked, device's limits applied, cost estimated.

Refusals are raised here, before anything is stored.
"""

from __future__ import annotations

import hashlib
import math
import struct
import time
from collections.abc import Sequence

import msgspec
import numpy as np

from qpeft.errors import ServiceError
from qpeft.service.ids import new_id
from qpeft.service.messages import PRIORITIES, BatchRequest, JobRequest, SweepRequest, result_bytes
from qpeft.service.scheduling.devices import DeviceCatalog
from qpeft.service.scheduling.programs import ProgramReader
from qpeft.service.scheduling.submission import JobSpec, StoredProgram, SubmissionRequest
from qpeft.service.settings import Settings


class Admission:
    """Turns requests into submissions.

    Args:
        settings: the service's bounds.
        catalog: limits and costs of the devices.
    """

    def __init__(self, settings: Settings, catalog: DeviceCatalog) -> None:
        self._settings, self.catalog = settings, catalog
        self.programs = ProgramReader(settings)

    def job(self, owner: str, request: JobRequest, key: str | None, digest: bytes) -> SubmissionRequest:
        """The submission of one circuit.

        Args:
            owner: id of the user.
            request: the request's body.
            key: idempotency key.
            digest: hash of the request, for which the key stands.

        Raises:
            ServiceError: the program cannot be read or run, or is over a bound.
        """
        program = self.programs.read(request)
        params = _params([request.params], program)
        target = new_id("j")
        item = self._item(request, program, params, 1, request.shots, request.seed, _observables(request, self._settings), target)
        return self._submission(owner, "job", target, request, (item,), (program,), key, digest)

    def batch(self, owner: str, request: BatchRequest, key: str | None, digest: bytes) -> SubmissionRequest:
        """The submission of many circuits, each a job.

        Args:
            owner: id of the user.
            request: the request's body.
            key: idempotency key.
            digest: hash of the request, for which the key stands.

        Raises:
            ServiceError: a program cannot be read or run, or is over a bound; the message names the circuit by its index.
        """
        self._check_rows(len(request.circuits))
        self._check_jobs(len(request.circuits))
        observables = _observables(request, self._settings)
        deadline = time.monotonic() + self._settings.max_request_read_s
        programs: dict[str, StoredProgram] = {}
        items = []
        for number, one in enumerate(request.circuits):
            try:
                program = self.programs.read(one, deadline)
                programs[program.hash] = program
                params = _params([one.params], program)
                shots = request.shots if one.shots is None else one.shots
                seed = one.seed if one.seed is not None or request.seed is None else (request.seed + number) % 2**63
                item = self._item(request, program, params, 1, shots, seed, observables, new_id("j"), one.name)
            except ServiceError as error:
                error.args = (f"circuit {number}: {error}",)
                raise
            items.append(item)
        return self._submission(owner, "batch", new_id("b"), request, tuple(items), tuple(programs.values()), key, digest)

    def placed(
        self, owner: str, request: BatchRequest, programs: Sequence[StoredProgram], key: str | None, digest: bytes
    ) -> SubmissionRequest:
        """The submission of programs that have been read and placed on a chip.

        Args:
            owner: id of the user.
            request: the request's settings; its circuits are ignored.
            programs: the programs, each a job.
            key: idempotency key.
            digest: hash of the request, for which the key stands.

        Raises:
            ServiceError: a program cannot run, or is over a bound; the message names the circuit by its index.
        """
        self._check_jobs(len(programs))
        items = []
        for number, program in enumerate(programs):
            try:
                items.append(self._item(request, program, b"", 1, request.shots, request.seed, None, new_id("j")))
            except ServiceError as error:
                error.args = (f"circuit {number}: {error}",)
                raise
        unique = {program.hash: program for program in programs}
        return self._submission(owner, "batch", new_id("b"), request, tuple(items), tuple(unique.values()), key, digest)

    def sweep(self, owner: str, request: SweepRequest, matrix: bytes | None, key: str | None, digest: bytes) -> SubmissionRequest:
        """The submission of one circuit with many rows of parameters, cut into jobs.

        Args:
            owner: id of the user.
            request: the request's body.
            matrix: parameters of a binary request, float32; None when they are in the request.
            key: idempotency key.
            digest: hash of the request, for which the key stands.

        Raises:
            ServiceError: the program cannot be read or run, or is over a bound.
        """
        program = self.programs.read(request)
        rows, params = _matrix(request, matrix, program)
        self._check_rows(rows)
        observables = _observables(request, self._settings)
        # each slice has a seed of its own, so that with a seed the cuts must not depend on what the service has learned
        one_s = self.catalog.estimate(request.device, program, 1, request.shots, learned=request.seed is None)
        most = self.catalog.rows(request.device, self._settings.slice_rows)
        row_bytes = max(_result_bytes(request, program, 1, request.shots, observables), 1)
        most = min(most, max(self._settings.max_result_bytes // row_bytes, 1))
        size = max(1, min(most, int(self._settings.slice_s / one_s) if one_s > 0 else most))
        self._check_jobs(-(-rows // size))
        width = len(params) // rows
        items = []
        for first in range(0, rows, size):
            part = params[first * width : (first + size) * width]
            seed = None if request.seed is None else (request.seed + first) % 2**63
            n = min(size, rows - first)
            items.append(self._item(request, program, part, n, request.shots, seed, observables, new_id("j")))
        return self._submission(owner, "sweep", new_id("b"), request, tuple(items), (program,), key, digest)

    def _check_rows(self, rows: int) -> None:
        if rows > self._settings.max_rows:
            raise ServiceError(
                "too many circuits in one request",
                status=422,
                code="rows",
                value=rows,
                bound=self._settings.max_rows,
                hint="send several",
            )

    def _check_jobs(self, n: int) -> None:
        if n > self._settings.max_jobs:
            raise ServiceError(
                "the request is too much work for one",
                status=422,
                code="jobs",
                value=f"{n} jobs",
                bound=self._settings.max_jobs,
                hint="send several, with fewer circuits, rows or shots each",
            )

    def _item(
        self,
        request: JobRequest | BatchRequest | SweepRequest,
        program: StoredProgram,
        params: bytes,
        rows: int,
        shots: int | None,
        seed: int | None,
        observables: bytes | None,
        target: str,
        name: str | None = None,
    ) -> JobSpec:
        self.catalog.check(request.device, program, shots, request.output, self._settings.max_shots)
        size = _result_bytes(request, program, rows, shots, observables)
        if size > self._settings.max_result_bytes:
            raise ServiceError(
                "the result would be too large",
                status=422,
                code="result",
                value=f"{size} bytes",
                bound=self._settings.max_result_bytes,
                hint="ask for expectations, or for counts of fewer shots",
            )
        estimate_s = self.catalog.estimate(request.device, program, rows, shots)
        model_s = self.catalog.estimate(request.device, program, rows, shots, learned=False)
        if model_s > self._settings.max_job_s and self.catalog.is_exact_model(request.device):
            raise ServiceError(
                "the job would take too long",
                status=422,
                code="cost",
                value=f"{model_s:.0f} s",
                bound=f"{self._settings.max_job_s:g} s",
                hint="use fewer gates or qubits",
            )
        chosen = request.name if name is None else name
        return JobSpec(target, program.hash, params, rows, shots, seed, request.output, observables, estimate_s, chosen)

    def _submission(
        self,
        owner: str,
        kind: str,
        target: str,
        request: JobRequest | BatchRequest | SweepRequest,
        items: tuple[JobSpec, ...],
        programs: tuple[StoredProgram, ...],
        key: str | None,
        digest: bytes,
    ) -> SubmissionRequest:
        return SubmissionRequest(
            id=target,
            kind=kind,
            owner=owner,
            device=request.device,
            items=items,
            programs=programs,
            name=request.name,
            exclusive=request.exclusive,
            expires_s=request.expires_s,
            key=key,
            digest=digest,
            priority=PRIORITIES[request.priority],
        )


def body_digest(path: str, body: bytes) -> bytes:
    """Digest of route and body, to which an idempotency key is bound.

    Args:
        path: path of the route.
        body: the request's body.
    """
    return hashlib.sha256(path.encode() + b"\0" + body).digest()


def _result_bytes(
    request: JobRequest | BatchRequest | SweepRequest,
    program: StoredProgram,
    rows: int,
    shots: int | None,
    observables: bytes | None,
) -> int:
    n = None if observables is None else len(request.observables or ())
    return result_bytes(request.output, rows, program.n_qubits, shots, n)


def _params(rows: Sequence[Sequence[float]], program: StoredProgram) -> bytes:
    """`(rows, n_params)` as bytes; refuses wrong lengths and numbers that are not finite."""
    for row in rows:
        if len(row) != program.n_params:
            raise ServiceError("wrong number of parameters", status=422, code="params", value=len(row), bound=program.n_params)
        if not all(map(math.isfinite, row)):
            raise ServiceError("parameters must be finite numbers", status=422, code="params")
    return b"".join(struct.pack(f"<{len(row)}d", *row) for row in rows)


def _matrix(request: SweepRequest, matrix: bytes | None, program: StoredProgram) -> tuple[int, bytes]:
    if matrix is None:
        if not request.params or request.rows is not None:
            raise ServiceError("a sweep has a matrix of parameters", status=422, code="params", bound="params: [[...], ...]")
        if len({len(row) for row in request.params}) != 1:
            raise ServiceError("rows of different lengths", status=422, code="params")
        return len(request.params), _params(request.params, program)
    if request.params is not None or request.rows is None:
        raise ServiceError("a binary sweep names its rows", status=422, code="params", bound="rows: N, no params")
    width, rest = divmod(len(matrix), 4 * request.rows)
    if rest or program.n_params != width:
        expected = f"rows x n_params x 4 = {request.rows} x {program.n_params} x 4 bytes"
        raise ServiceError("the matrix has the wrong size", status=422, code="params", value=len(matrix), bound=expected)
    values = np.frombuffer(matrix, "<f4").astype("<f8")
    if not np.isfinite(values).all():
        raise ServiceError("parameters must be finite numbers", status=422, code="params")
    return request.rows, values.tobytes()


def _observables(request: JobRequest | BatchRequest | SweepRequest, settings: Settings) -> bytes | None:
    if request.observables is None:
        return None
    if request.output != "expectations":
        raise ServiceError("observables go with expectations", status=422, code="observables", value=request.output)
    terms = sum(len(observable) for observable in request.observables)
    if not request.observables or terms > settings.max_observables:
        bound = f"1..{settings.max_observables}"
        raise ServiceError("too few or too many terms in observables", status=422, code="observables", value=terms, bound=bound)
    for observable in request.observables:
        for coefficient, word in observable:
            if not math.isfinite(coefficient) or len({qubit for qubit, _ in word}) != len(word):
                raise ServiceError("a Pauli word names each qubit once, with a finite coefficient", status=422, code="observables")
    return msgspec.json.encode(request.observables)

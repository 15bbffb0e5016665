"""Jobs, batches and sweeps: submit, read, cancel, delete."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response

from qpeft.errors import ServiceError
from qpeft.service import metrics
from qpeft.service.api.routes import BINARY, JSON, NDJSON, Context, Route, answer, decode, encode
from qpeft.service.messages import BatchRequest, CircuitSource, JobRequest, SweepRequest, unpack_result
from qpeft.service.scheduling.admission import body_digest
from qpeft.service.scheduling.submission import SubmissionRequest
from qpeft.service.store import lifecycle
from qpeft.service.store.directory import stamp
from qpeft.service.store.queries import job_view
from qpeft.service.store.schema import TERMINAL, Row

_JOB = msgspec.json.Decoder(JobRequest)
_BATCH = msgspec.json.Decoder(BatchRequest)
_SWEEP = msgspec.json.Decoder(SweepRequest)
_QUICK = 1 << 16  # bytes of a body that is worked on in the loop
PAGE_BYTES = 8 << 20
T = TypeVar("T")


def has_text(source: CircuitSource) -> bool:
    """Whether a program has to be read in a process of its own."""
    return source.qasm is not None or source.originir is not None


async def _accepted(context: Context, submission: SubmissionRequest, view: dict[str, Any] | None = None) -> Response:
    """Store a submission and answer: 201 with the job or batch, or 200 with the first answer's when the key was used before."""
    service = context.service
    receipt = await service.writer.call(service.submit, submission)
    kind = "jobs" if submission.kind == "job" else "batches"
    headers = {"location": f"/v1/{kind}/{receipt.id}"}
    if receipt.replayed:
        read = service.queries.job_view if kind == "jobs" else service.queries.batch_view
        return answer(await service.ask(read, submission.owner, receipt.id), 200, {**headers, "idempotency-replayed": "true"})
    metrics.submitted(submission.device).inc(len(submission.items))
    created_at = stamp(receipt.created_at)
    if view is not None:
        expires_at = None if submission.expires_s is None else stamp(receipt.created_at + submission.expires_s)
        more = {"queue_position": receipt.ahead, "created_at": created_at, "expires_at": expires_at}
        return answer({**view, **more}, 201, headers)
    new = {
        "id": submission.id,
        "kind": submission.kind,
        "device": submission.device,
        "state": "queued",
        "name": submission.name,
        "jobs": len(submission.items),
        "circuits": submission.circuits,
        "states": {"queued": len(submission.items)},
        "finished_circuits": 0,
        "device_s": 0.0,
        "created_at": created_at,
    }
    return answer(new, 201, headers)


async def post_job(context: Context) -> Response:
    """One circuit, run once for its parameters. Answers at once; `GET /v1/jobs/{id}?wait=30` waits for the end."""
    request, body = await context.json(_JOB)
    build, key, digest = context.service.admission.job, context.idempotency_key(), body_digest("/v1/jobs", body)
    if has_text(request):
        submission = await context.service.admit(context.owner, build, request, key, digest, text=True)
    else:
        submission = build(context.owner, request, key, digest)
    item = submission.items[0]
    view = {
        "id": submission.id,
        "device": submission.device,
        "state": "queued",
        "reason": "",
        "name": submission.name,
        "circuits": 1,
        "shots": item.shots,
        "output": item.output,
        "attempt": 0,
        "estimate_s": item.estimate_s,
    }
    return await _accepted(context, submission, view)


async def post_batch(context: Context) -> Response:
    """Many circuits, each a job of its own, at most 20,000. A refusal names the circuit by its number, from 0."""
    request, body = await context.json(_BATCH)
    build = context.service.admission.batch
    key = context.idempotency_key()
    digest = body_digest("/v1/batches", body)
    text = any(has_text(one) for one in request.circuits)
    if text or len(body) > _QUICK:  # do not keep others waiting for the loop
        submission = await context.service.admit(context.owner, build, request, key, digest, text=text)
    else:
        submission = build(context.owner, request, key, digest)
    return await _accepted(context, submission)


async def post_sweep(context: Context) -> Response:
    """One circuit and a row of parameters for each run: JSON, or binary with float32. Cut into jobs of equal cost."""
    form = context.content_type(JSON, BINARY)
    body = await context.body()
    matrix: bytes | None = None
    head = body
    if form == BINARY:
        length = struct.unpack_from("<I", body)[0] if len(body) >= 4 else 0
        if not 0 < length <= len(body) - 4:
            raise ServiceError("a binary sweep starts with the length of its head", code="body", value=length, bound=len(body) - 4)
        head, matrix = body[4 : 4 + length], body[4 + length :]
        await context.bounded(head)
    request = decode(_SWEEP, head)
    digest = body_digest("/v1/sweeps", body)
    build = context.service.admission.sweep
    key = context.idempotency_key()
    if has_text(request) or len(body) > _QUICK:
        submission = await context.service.admit(context.owner, build, request, matrix, key, digest, text=has_text(request))
    else:
        submission = build(context.owner, request, matrix, key, digest)
    return await _accepted(context, submission)


async def _ended(context: Context, name: str, look: Callable[[], T], state: Callable[[T], str]) -> T:
    """`look()` again after every change of `name`, until its state is final or `?wait=` seconds are over."""
    with context.waiting(name) as waiting:
        while True:
            found = await context.service.ask(look)
            if state(found) in TERMINAL or not await waiting.again():
                return found


async def get_job(context: Context) -> Response:
    """State, reason, place in the queue and expected start. `?wait=` answers at the end, or after so many seconds."""
    job, queries = context.path("id"), context.service.queries
    row = await _ended(context, job, lambda: queries.job(context.owner, job), lambda row: str(row.state))
    if row.state != "queued":
        return answer(job_view(row))
    return answer(await context.service.ask(queries.job_view, context.owner, job))


async def get_result(context: Context) -> Response:
    """Counts, probabilities or expectations; 409 with the reason when the job has none."""
    job, queries = context.path("id"), context.service.queries
    row = await _ended(context, job, lambda: queries.job(context.owner, job), lambda row: str(row.state))
    payload = await context.service.ask(queries.result, row)
    return answer(_result(row, payload))


def _result(row: Row, payload: bytes | None) -> dict[str, Any]:
    result = unpack_result(payload).public() if payload is not None else {}
    return {
        "id": row.id,
        "state": row.state,
        "reason": row.reason,
        "index": row.position if row.batch else None,
        "circuits": row.rows,
        "shots": row.shots,
        "calibration": row.calibration,
        "device_s": row.device_s,
        **result,
    }


async def list_jobs(context: Context) -> Response:
    """Results in order. `?cursor=` continues after the previous answer."""
    state = context.choice("state")
    limit = int(context.number("limit", 100))
    before = int(context.number("cursor", 0)) or None
    queries, device = context.service.queries, context.query("device")
    rows = await context.service.ask(lambda: queries.jobs(context.owner, state=state, device=device, before=before, limit=limit))
    cursor = str(rows[-1].seq) if len(rows) == limit else None
    return answer({"jobs": [job_view(row) for row in rows], "cursor": cursor})


async def list_batches(context: Context) -> Response:
    """Batches and sweeps with job counts by state. `?before=` with the last id of a page gives the next page."""
    limit, before = int(context.number("limit", 100)), context.query("before")
    found = await context.service.ask(context.service.queries.batches, context.owner, before, limit)
    return answer({"batches": found, "before": found[-1]["id"] if len(found) == limit else None})


async def get_batch(context: Context) -> Response:
    """Jobs counted by state. `?wait=` answers when all have ended."""
    batch, queries = context.path("id"), context.service.queries
    view = lambda: queries.batch_view(context.owner, batch)  # noqa: E731
    return answer(await _ended(context, batch, view, lambda found: str(found["state"])))


async def get_batch_results(context: Context) -> Response:
    """A line of NDJSON for each job that has ended, in order, up to the first that has not.

    The header `qpeft-cursor` says where to go on, `qpeft-complete` whether nothing follows. A page ends after `limit` jobs
    or 8 MiB.
    With `Accept: application/octet-stream` the answer is the numbers alone, float64, for jobs that have numbers.
    """
    service, batch = context.service, context.path("id")
    limit, position = int(context.number("limit", 1000)), int(context.number("cursor", 0))
    found = await service.ask(service.queries.batch, context.owner, batch)
    with context.waiting(batch) as waiting:
        while True:
            page = await service.ask(service.queries.batch_results, batch, position, limit, PAGE_BYTES)
            if page.rows or page.complete or not await waiting.again():
                break
    complete = page.complete or page.following >= found.n_jobs
    headers = {"qpeft-cursor": str(page.following), "qpeft-complete": "true" if complete else "false"}
    if BINARY in context.request.headers.get("accept", ""):
        return await service.ask(_binary_results, page.rows, headers)
    lines = await service.ask(lambda: b"".join(encode(_result(row, payload)) + b"\n" for row, payload in page.rows))
    return Response(lines, 200, headers, NDJSON)


def _binary_results(rows: list[tuple[Row, bytes | None]], headers: dict[str, str]) -> Response:
    """The numbers alone: float64 rows of every job one after the other. Refused when a job has none."""
    parts, columns = [], 0
    for row, payload in rows:
        if payload is None or (result := unpack_result(payload)).counts is not None:
            raise ServiceError(
                "a job of the batch has no numbers", status=409, code="no_numbers", value=row.id, hint="read the NDJSON"
            )
        parts.append(result.data)
        columns = result.columns
    return Response(b"".join(parts), 200, {**headers, "qpeft-columns": str(columns), "qpeft-dtype": "float64"}, BINARY)


def _target(context: Context, kind: str) -> lifecycle.Target:
    return lifecycle.Target(kind, context.path("id"), context.owner)


async def cancel_job(context: Context) -> Response:
    """A queued job ends at once. A running one is stopped, also in the middle of its circuit."""
    await context.service.writer.call(lifecycle.cancel, _target(context, "job"))
    return answer(await context.service.ask(context.service.queries.job_view, context.owner, context.path("id")))


async def cancel_batch(context: Context) -> Response:
    """Every job of it that has not ended."""
    await context.service.writer.call(lifecycle.cancel, _target(context, "batch"))
    return answer(await context.service.ask(context.service.queries.batch_view, context.owner, context.path("id")))


async def delete_job(context: Context) -> Response:
    """Only when it has ended. A job of a batch goes with its batch."""
    await context.service.writer.call(lifecycle.delete, _target(context, "job"))
    return Response(status_code=204)


async def delete_batch(context: Context) -> Response:
    """Only when every job of it has ended."""
    await context.service.writer.call(lifecycle.delete, _target(context, "batch"))
    return Response(status_code=204)


_BODY_FORMS = (JSON, BINARY)
ROUTES = [
    Route("POST", "/v1/jobs", "submit", post_job, "Submit one circuit", JobRequest, status=201),
    Route("GET", "/v1/jobs/{id}", "read", get_job, "A job", query=("wait",)),
    Route("GET", "/v1/jobs/{id}/result", "read", get_result, "A job's result", query=("wait",)),
    Route("GET", "/v1/jobs", "read", list_jobs, "Your jobs, newest first", query=("state", "device", "limit", "cursor")),
    Route("POST", "/v1/jobs/{id}/cancel", "submit", cancel_job, "Cancel a job"),
    Route("DELETE", "/v1/jobs/{id}", "submit", delete_job, "Delete a finished job and its result", status=204),
    Route("POST", "/v1/batches", "submit", post_batch, "Submit many circuits", BatchRequest, status=201),
    Route("POST", "/v1/sweeps", "submit", post_sweep, "Submit one circuit with a matrix of parameters", SweepRequest,
          status=201, body=_BODY_FORMS),
    Route("GET", "/v1/batches", "read", list_batches, "Your batches and sweeps, newest first", query=("limit", "before")),
    Route("GET", "/v1/batches/{id}", "read", get_batch, "A batch or sweep", query=("wait",)),
    Route(
        "GET", "/v1/batches/{id}/results", "read", get_batch_results, "Results in order, as far as they are there",
        gives=NDJSON, query=("wait", "limit", "cursor"),
    ),
    Route("POST", "/v1/batches/{id}/cancel", "submit", cancel_batch, "Cancel a batch"),
    Route("DELETE", "/v1/batches/{id}", "submit", delete_batch, "Delete a finished batch with its jobs and results", status=204),
]  # fmt: skip

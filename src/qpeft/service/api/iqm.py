"""IQM Server API v1, so that unmodified iqm-client, pennylane-iqm, QRMI and QDMI programs run on this service's emulated chips.

`IQMProvider("http://127.0.0.1:8642", quantum_computer="wukong72", token=KEY)` sends one of this service's keys as a bearer token.
A job is a batch: its id is the batch's as a UUID, and it goes through the same queue, quotas and devices as any other. Circuits
arrive routed, and run on the qubits that they name. At the end are the three routes of the older API that CUDA-Q uses.
"""

from __future__ import annotations

import functools
import re
import uuid
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from starlette.responses import Response

from qpeft.backends.emulator.chip import Chip
from qpeft.errors import ServiceError
from qpeft.service import metrics
from qpeft.service.api import iqm_circuits as words
from qpeft.service.api.iqm_circuits import CircuitsRequest, identifier
from qpeft.service.api.routes import JSON, Context, Route, answer
from qpeft.service.ids import ALPHABET
from qpeft.service.messages import BatchRequest, unpack_result
from qpeft.service.scheduling import submission as scheduling
from qpeft.service.scheduling.admission import body_digest
from qpeft.service.store import lifecycle
from qpeft.service.store.directory import stamp
from qpeft.service.store.schema import TERMINAL, Row

MAX_BITS: Final = 1 << 25
"""Measured bits of one job, over all its circuits and shots: they are sent one by one."""
_STATES: Final = {"queued": "waiting", "running": "processing", "succeeded": "completed", "cancelled": "cancelled"}
_OLDER: Final = {"waiting": "waiting", "processing": "pending execution", "completed": "ready", "cancelled": "aborted"}
_SUBMISSION = msgspec.json.Decoder(CircuitsRequest)
_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_CIRCUIT = msgspec.json.Decoder(words.IqmCircuit)


class SentCircuit(msgspec.Struct, omit_defaults=True):
    """What is kept of a submission with each of its programs: the circuit, and with the first one the body around it."""

    circuit: msgspec.Raw
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class SentProgram(msgspec.Struct):
    """The part of a stored program that tells what a client sent."""

    source: SentCircuit | msgspec.UnsetType = msgspec.UNSET


_STORED = msgspec.json.Decoder(SentProgram)


def chips(context: Context) -> dict[str, str]:
    """Emulated chips by alias: letters and digits of the device's name, after its kind."""
    names = [name for name in context.service.settings.devices if _emulated(context, name)]
    short = {name: _plain(Path(name.partition(":")[2]).name.removesuffix(".json")) for name in names}
    return {short[name] if list(short.values()).count(short[name]) == 1 and short[name] else _plain(name): name for name in names}


def _emulated(context: Context, name: str) -> bool:
    info = context.service.catalog.info.get(name)
    return info is not None and info.chip and info.simulated


def _plain(text: str) -> str:
    return re.sub("[^A-Za-z0-9]", "", text)


def _device(context: Context, name: str | None = None) -> str:
    """The device of the path's quantum computer, or (CUDA-Q) the first; ServiceError 404."""
    known = chips(context)
    wanted = context.path("computer") if name is None else name
    if not wanted and known:
        return next(iter(known.values()))
    for alias, device in known.items():
        if wanted in (alias, str(identifier(device))):
            return device
    raise ServiceError(
        "no such quantum computer",
        status=404,
        code="no_device",
        value=wanted[:64],
        bound=", ".join(known) or "no worker has come yet",
    )


def _computer(alias: str, device: str) -> dict[str, Any]:
    head = {"id": str(identifier(device)), "alias": alias, "display_name": f"{device} (emulated)"}
    return {**head, "station_control_version": None, "proxy_path": None}


async def quantum_computers(context: Context) -> Response:
    """The emulated chips, under names of letters and digits."""
    return answer({"quantum_computers": [_computer(*one) for one in chips(context).items()]})


async def _health(context: Context) -> dict[str, Any]:
    device = _device(context)
    row = next(row for row in await context.service.ask(context.service.queries.devices) if row.id == device)
    alive = await context.service.ask(context.service.queries.alive_workers)
    healthy = row.status == "online" and any(device in worker.devices.split("\n") for worker in alive)
    return {"healthy": healthy, "updated_at": stamp(context.service.clock.now())}


async def quantum_computer(context: Context) -> Response:
    """One emulated chip, and whether it takes and runs jobs now."""
    device = _device(context)
    alias = next(alias for alias, name in chips(context).items() if name == device)
    return answer({**_computer(alias, device), "status": {"health": await _health(context)}})


async def health(context: Context) -> Response:
    """Whether the chip takes and runs jobs now."""
    return answer(await _health(context))


@functools.lru_cache(maxsize=16)
def _chip(data: bytes) -> Chip:
    return Chip.from_json(data)


async def _calibration(context: Context, device: str, wanted: str) -> tuple[Chip, Row]:
    """The chip under a calibration by its UUID, or under today's (`default`); ServiceError 404."""
    queries, service = context.service.queries, context.service
    name = None
    if wanted != "default":
        known = await service.ask(queries.calibration_ids, device)
        name = next((one for one in known if str(identifier(one)) == wanted.lower()), "")
    row = await service.ask(queries.calibration, device, name) if name != "" else None
    if row is None:
        raise ServiceError("no such calibration set", status=404, code="not_found", value=wanted[:64], bound="default")
    return await service.ask(_chip, bytes(row.data)), row


async def architecture(context: Context) -> Response:
    """Live qubits and the loci of each gate under a calibration."""
    chip, row = await _calibration(context, _device(context), context.path("calibration"))
    return answer(words.architecture(chip, row.id))


async def static_architectures(context: Context) -> Response:
    """Qubits and couplers of the chip, whatever works today."""
    chip, _ = await _calibration(context, _device(context), "default")
    return answer([words.static_architecture(chip)])


async def calibration_set(context: Context) -> Response:
    """Coherence and gate times under a calibration; `dut_label` says where they are synthetic."""
    chip, row = await _calibration(context, _device(context), context.path("calibration"))
    return answer(words.observations(chip, row.id, row.created_at, False))


async def calibration_metrics(context: Context) -> Response:
    """Fidelities of gates and readout under a calibration; `dut_label` says where they are synthetic."""
    chip, row = await _calibration(context, _device(context), context.path("calibration"))
    return answer(words.observations(chip, row.id, row.created_at, True))


async def submit(context: Context) -> Response:
    """Circuits of prx, cz and measure on the chip's own qubits. A refusal names circuit and instruction, from 0."""
    return answer(await _job(context, await _accept(context, _device(context))), 201)


async def _accept(context: Context, device: str) -> str:
    """Check and store a submission; the id of its batch."""
    request, body = await context.json(_SUBMISSION)
    words.check_options(request)
    service = context.service
    chip, row = await _calibration(context, device, "default")
    if request.calibration_set_id not in (None, str(identifier(row.id)), "default"):
        raise ServiceError(
            "the chip runs under another calibration set now",
            status=422,
            code="calibration",
            value=request.calibration_set_id[:64],
            bound=str(identifier(row.id)),
            hint="leave it out, or ask for the architecture again",
        )
    limits = service.settings
    programs = await service.admit(context.owner, _programs, chip, request, body, limits.max_ops, limits.max_jobs, text=False)
    batch = BatchRequest(device=device, circuits=[], shots=request.shots, name=context.query("tag") or "iqm", exclusive=True)
    key, digest = context.idempotency_key(), body_digest(f"iqm {device}", body)
    submission = await service.admit(context.owner, service.admission.placed, batch, programs, key, digest, text=False)
    receipt = await service.writer.call(service.submit, submission)
    if not receipt.replayed:
        metrics.submitted(device).inc(len(programs))
    return receipt.id


def _programs(
    _owner: str, chip: Chip, request: CircuitsRequest, body: bytes, most_ops: int, most: int
) -> list[scheduling.StoredProgram]:
    if len(request.circuits) > most:
        raise ServiceError("too many circuits in one job", status=422, code="jobs", value=len(request.circuits), bound=most)
    reading = words.IqmReading(chip, request)
    rest = _RAW.decode(body)
    texts = _LIST.decode(rest.pop("circuits"))
    around = msgspec.Raw(msgspec.json.encode(rest))
    programs, bits = [], 0
    for number, (circuit, text) in enumerate(zip(request.circuits, texts, strict=True)):
        source = msgspec.json.encode(SentCircuit(text) if number else SentCircuit(text, around))
        try:
            programs.append(reading.program(circuit, source, most_ops))
            assert not isinstance(circuit, str)
            bits += request.shots * sum(n for _, n in words.measurements(circuit))
        except ServiceError as error:
            error.args = (f"circuit {number}: {error}",)
            raise
    if bits > MAX_BITS:
        hint = "send fewer circuits or shots in one job"
        raise ServiceError("the job would measure too many bits", status=422, code="result", value=bits, bound=MAX_BITS, hint=hint)
    return programs


def _batch(text: str) -> str:
    """The batch of a job by its UUID; ServiceError 404 for what is none."""
    try:
        value = uuid.UUID(text).int << 2
    except ValueError:
        raise ServiceError("no such job", status=404, code="not_found", value=text[:64]) from None
    return "b" + "".join(ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def _uuid(batch: str) -> str:
    return str(uuid.UUID(int=functools.reduce(lambda value, letter: value << 5 | ALPHABET.index(letter), batch[1:], 0) >> 2))


async def _job(context: Context, batch: str) -> dict[str, Any]:
    """A job as clients read it."""
    service, queries = context.service, context.service.queries
    view = await service.ask(queries.batch_view, context.owner, batch)
    rows = await service.ask(queries.batch_jobs, batch)
    status = _STATES.get(view["state"], "failed")
    position = await service.ask(queries.position, rows[0]) if status == "waiting" and rows else None
    started = min((row.started_at for row in rows if row.started_at), default=None)
    ended = max((row.finished_at for row in rows if row.finished_at), default=None) if view["state"] in TERMINAL else None
    moments = (("created", rows[0].created_at if rows else None), ("execution_started", started), (status, ended))
    timeline = [{"source": "qpeft", "status": name, "timestamp": stamp(when)} for name, when in moments if when is not None]
    wrong = [(number, row) for number, row in enumerate(rows) if row.state in ("failed", "expired")]
    calibration = next((row.calibration for row in rows if row.calibration), None)
    done = status == "completed"
    return {
        "id": _uuid(batch),
        "type": "circuit",
        "status": status,
        "qc": {"id": str(identifier(view["device"]))},
        "queue_position": position,
        "execution": {"progress": {}},
        "compilation": None if calibration is None else {"calibration_set_id": str(identifier(calibration))},
        "messages": [],
        "errors": [
            {"message": f"circuit {number}: {row.reason}", "error_code": row.state, "source": "qpeft"} for number, row in wrong[:20]
        ],
        "timeline": timeline,
        "artifacts": [{"type": "measurements"}, {"type": "measurement_counts"}] if done else [],
    }


async def get_job(context: Context) -> Response:
    """State and times. `?wait_until_terminal=true&timeout_seconds=30` answers at the end, or after so many seconds."""
    batch = _batch(context.path("job"))
    timeout_s, wanted = context.number("timeout_seconds", 30.0), context.choice("wait_until_terminal") == "true"
    wait_s = timeout_s if wanted else 0.0
    with context.waiting(batch, wait_s) as waiting:
        while True:
            job = await _job(context, batch)
            ended = job["status"] not in ("waiting", "processing")
            if ended or not await waiting.again():
                break
    return answer(job, headers={"iqm-long-poll-timed-out": "true"} if wait_s and not ended else None)


async def cancel(context: Context) -> Response:
    """Cancel every circuit that has not ended; 409 when all have."""
    batch = _batch(context.path("job"))
    touched = await context.service.writer.call(lifecycle.cancel, lifecycle.Target("batch", batch, context.owner))
    job = await _job(context, batch)
    if not touched and job["status"] != "processing":
        raise ServiceError("the job has ended", status=409, code="terminal", value=job["status"])
    return answer(job)


async def delete(context: Context) -> Response:
    """Delete a job that has ended, with its results."""
    await context.service.writer.call(lifecycle.delete, lifecycle.Target("batch", _batch(context.path("job")), context.owner))
    return Response(status_code=204)


async def _sources(context: Context, batch: str) -> list[SentCircuit]:
    """What the client sent, circuit by circuit; ServiceError 404 for a job of another API."""
    await context.service.ask(context.service.queries.batch, context.owner, batch)
    texts = await context.service.ask(context.service.queries.batch_programs, batch)
    found = [_STORED.decode(text).source for text in texts] if all(text[:1] == b"{" for text in texts) else []
    sources = [one for one in found if isinstance(one, SentCircuit)]
    if not sources or len(sources) < len(texts):
        raise ServiceError("the job came by another API", status=404, code="not_found", value=context.path("job")[:64])
    return sources


def _payload(sources: list[SentCircuit]) -> bytes:
    head = sources[0].body
    rest = _RAW.decode(bytes(head)) if isinstance(head, msgspec.Raw) else {}
    return msgspec.json.encode({"circuits": [one.circuit for one in sources], **rest})


async def payload(context: Context) -> Response:
    """The submission as it came."""
    sources = await _sources(context, _batch(context.path("job")))
    return Response(_payload(sources), media_type=JSON)


async def _outcomes(context: Context) -> list[tuple[list[tuple[str, int]], dict[str, int], int]]:
    """For each circuit its keys, its counts by bits in the order of the keys, and a seed; ServiceError 409 without results."""
    batch = _batch(context.path("job"))
    sources = await _sources(context, batch)
    page = await context.service.ask(context.service.queries.batch_results, batch, 0, len(sources), 1 << 40)
    found = []
    for source, (row, stored) in zip(sources, page.rows, strict=False):
        counts = unpack_result(stored).counts if stored is not None else None
        if counts is None:
            break
        found.append((words.measurements(_CIRCUIT.decode(bytes(source.circuit))), counts[0], row.seq))
    if len(found) < len(sources):
        job = await _job(context, batch)
        reason = job["errors"][0]["message"] if job["errors"] else "wait until it is completed"
        raise ServiceError("the job has no results", status=409, code="no_results", value=job["status"], hint=reason)
    return found


async def measurements(context: Context) -> Response:
    """Each circuit's outcomes shot by shot, in a random order: bit i of a key is the i-th qubit of its locus."""
    outcomes = await _outcomes(context)
    text = await context.service.ask(lambda: b"[" + b",".join(_shots(*one) for one in outcomes) + b"]")
    return Response(text, media_type=JSON)


def _shots(keys: list[tuple[str, int]], counts: dict[str, int], seed: int) -> bytes:
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), list(counts.values())))
    columns, first = [], 0
    for key, width in keys:
        rows = [b"[" + ",".join(bits[first : first + width]).encode() + b"]" for bits in counts]
        columns.append(msgspec.json.encode(key) + b":[" + b",".join([rows[k] for k in order]) + b"]")
        first += width
    return b"{" + b",".join(columns) + b"}"


def _counts(keys: list[tuple[str, int]], counts: dict[str, int]) -> dict[str, Any]:
    """Keys in reverse order of the program, strings to match: right for clients that read the keys, and for those that take the
    last classical bit to be the leftmost."""
    starts = np.cumsum([0, *(width for _, width in keys)])
    spans = [slice(start, start + width) for start, (_, width) in zip(starts, keys, strict=False)][::-1]
    turned = {"".join(bits[span] for span in spans): n for bits, n in counts.items()}
    return {"measurement_keys": [key for key, _ in reversed(keys)], "counts": turned}


async def measurement_counts(context: Context) -> Response:
    """Each circuit's outcomes counted; a string is the bits of the keys in the order that `measurement_keys` tells."""
    return answer([_counts(keys, counts) for keys, counts, _ in await _outcomes(context)])


async def older_architecture(context: Context) -> Response:
    """CUDA-Q: live qubits and loci of the first emulated chip."""
    chip, row = await _calibration(context, _device(context, ""), "default")
    return answer(words.architecture(chip, row.id))


async def older_submit(context: Context) -> Response:
    """CUDA-Q: one circuit for the first emulated chip, angles in full turns."""
    return answer({"id": _uuid(await _accept(context, _device(context, "")))}, 201)


async def older_counts(context: Context) -> Response:
    """CUDA-Q: state of a job and, once it is ready, its counts."""
    batch = _batch(context.path("job"))
    job = await _job(context, batch)
    status = _OLDER.get(job["status"], "failed")
    told: dict[str, Any] = {"status": status, "message": "; ".join(error["message"] for error in job["errors"]) or status}
    if status == "ready":
        sources = await _sources(context, batch)
        told["counts_batch"] = [_counts(keys, counts) for keys, counts, _ in await _outcomes(context)]
        told["metadata"] = {"request": msgspec.Raw(_payload(sources))}
    return answer(told)


_Q, _C, _J = "/api/v1/quantum-computers", "/api/v1/calibration-sets/{computer}/{calibration}", "/api/v1/jobs/{job}"
_POLL = ("wait_until_terminal", "timeout_seconds")
ROUTES = [
    Route("GET", _Q, "read", quantum_computers, "IQM: emulated chips"),
    Route("GET", _Q + "/{computer}", "read", quantum_computer, "IQM: an emulated chip"),
    Route("GET", _Q + "/{computer}/health", "read", health, "IQM: whether a chip runs jobs"),
    Route("GET", _Q + "/{computer}/artifacts/static-quantum-architectures", "read", static_architectures, "IQM: couplers"),
    Route("GET", _C + "/dynamic-quantum-architecture", "read", architecture, "IQM: qubits and gates under a calibration"),
    Route("GET", _C, "read", calibration_set, "IQM: a calibration"),
    Route("GET", _C + "/metrics", "read", calibration_metrics, "IQM: fidelities under a calibration"),
    Route(
        "POST",
        "/api/v1/jobs/{computer}/circuit",
        "submit",
        submit,
        "IQM: submit circuits",
        CircuitsRequest,
        status=201,
        query=("tag",),
    ),
    Route("GET", _J, "read", get_job, "IQM: a job", query=_POLL),
    Route("GET", _J + "/payload", "read", payload, "IQM: what was submitted"),
    Route("GET", _J + "/artifacts/measurements", "read", measurements, "IQM: outcomes shot by shot"),
    Route("GET", _J + "/artifacts/measurement_counts", "read", measurement_counts, "IQM: outcomes counted"),
    Route("POST", _J + "/cancel", "submit", cancel, "IQM: cancel a job"),
    Route("DELETE", _J, "submit", delete, "IQM: delete a job that has ended", status=204),
    Route("GET", "/calibration-sets/default/dynamic-quantum-architecture", "read", older_architecture, "CUDA-Q: qubits and gates"),
    Route("POST", "/circuits", "submit", older_submit, "CUDA-Q: submit a circuit", CircuitsRequest, status=201),
    Route("GET", "/circuits/{job}/counts", "read", older_counts, "CUDA-Q: state and counts of a job"),
]

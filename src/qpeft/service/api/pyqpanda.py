"""Origin Quantum's cloud routes, so that unmodified pyqpanda3 clients can use this service.

`QCloudService(api_key=KEY, url="http://127.0.0.1:8642")` sends its key as `Authorization: oqcs_auth=KEY`: one of this service's
keys. A task is a batch, its programs are OriginIR text, and it goes through the same queue, quotas and devices as any other.
The protocol was observed, not specified: what is answered here is what pyqpanda3 0.5 queries.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta
from starlette.responses import Response

from qpeft.errors import ServiceError
from qpeft.service.api.routes import JSON, Context, Route, answer, decode
from qpeft.service.core import Service
from qpeft.service.messages import BatchItem, BatchRequest, unpack_result
from qpeft.service.scheduling.admission import body_digest
from qpeft.service.store import lifecycle
from qpeft.service.store.directory import stamp
from qpeft.service.store.schema import TERMINAL, Row
from qpeft.service.workers.reader import PYQPANDA_BINARY, PYQPANDA_INSTRUCTIONS

CHIPS: Final = {"72": "emulator:wukong-72", "WK_C180": "emulator:wukong-180", "full_amplitude": "simulator"}
MAX_PROGRAMS: Final = 200
MAX_TASK_BYTES: Final = 256 << 20
MACHINE_TYPE: Final = {"full_amplitude": 0}
_MACHINES: Final = {"0": "full amplitude", "5": "chip"}
_STATES: Final = {"queued": "1", "running": "2", "succeeded": "3"}
_SUCCESS: Final = 10000


Name: TypeAlias = Annotated[str, Meta(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Configuration(msgspec.Struct):
    """Settings of a task that this service reads. The device does its own mapping and optimisation."""

    shot: int = 1000
    measure_type: int = 1
    """1: counts of the program's own measurements; 2: exact probabilities of `qubits`, from the simulator."""
    qubits: list[Annotated[int, Meta(ge=0, le=1023)]] = msgspec.field(default_factory=list)


class QCloudTask(msgspec.Struct):
    """A task in one of three forms: OriginIR text, the vendor's binary form of several programs, or native instructions."""

    Configuration: Configuration
    QProg: list[str] | str | None = None
    QProgBytes: list[Annotated[int, Meta(ge=-128, le=255)]] | None = None
    Inst: list[msgspec.Raw] | None = None
    ChipID: Name = "full_amplitude"
    QMachineType: Name = "5"


class TaskId(msgspec.Struct):
    """A task by its id, which is a batch's."""

    taskId: Name


class ChipId(msgspec.Struct):
    """A chip by the vendor's name of it."""

    ChipID: Name


class Blocks(msgspec.Struct):
    """How many lines of how many qubits are wanted."""

    chipId: Name
    qubitNum: Annotated[int, Meta(ge=1, le=64)]
    qubitBlockNum: Annotated[int, Meta(ge=1, le=16)] = 1
    label: Annotated[int, Meta(ge=0, le=1000)] = 1


_TASK = msgspec.json.Decoder(QCloudTask)
_TASK_ID = msgspec.json.Decoder(TaskId)
_BLOCKS = msgspec.json.Decoder(Blocks)
_CHIP_ID = msgspec.json.Decoder(ChipId)


def _reply(obj: Any) -> Response:
    return answer({"success": True, "code": _SUCCESS, "message": "", "obj": obj})


async def resources(context: Context) -> Response:
    """Devices under the names that pyqpanda3 knows chips by."""
    rows = {row.id: row for row in await context.service.ask(context.service.queries.devices)}
    found = [
        {"machineType": MACHINE_TYPE.get(chip, 5), "onlineFlag": rows[device].status == "online", "sinanChipId": chip}
        for chip, device in CHIPS.items()
        if device in rows
    ]
    return answer(found)


def _device(context: Context, chip: str) -> str:
    device = CHIPS.get(chip)
    if device not in context.service.settings.devices:
        known = ", ".join(chip for chip, name in CHIPS.items() if name in context.service.settings.devices)
        raise ServiceError("no such chip", status=404, code="no_device", value=chip[:64], bound=known)
    return device


async def chip_info(context: Context) -> Response:
    """A chip's calibration in the vendor's form."""
    chip = decode(_CHIP_ID, await context.body()).ChipID
    return _reply(_vendor_form(chip, msgspec.json.decode(await _calibration(context, chip))))


async def _calibration(context: Context, chip: str) -> bytes:
    """The chip file of the current calibration."""
    row = await context.service.ask(context.service.queries.calibration, _device(context, chip))
    if row is None or "qubits" not in msgspec.json.decode(row.data):
        raise ServiceError(
            "the chip has told no calibration", status=404, code="not_found", value=chip[:64], hint="start its worker"
        )
    return bytes(row.data)


def _vendor_form(chip: str, data: dict[str, Any]) -> dict[str, Any]:
    qubits = data["qubits"]
    adjacency: dict[str, list[dict[str, Any]]] = {str(q): [] for q in range(len(qubits))}
    for coupler in data["couplers"]:
        a, b = coupler["qubits"]
        fidelity = 1.0 - (coupler["error_cz"] or 0.0) if coupler["enabled"] else 0.0
        adjacency[str(a)].append({"v": b, "w": fidelity})
        adjacency[str(b)].append({"v": a, "w": fidelity})
    parameters = [
        {
            "qubitId": str(number),
            "T1": qubit["t1_us"] or 0.0,
            "T2": qubit["t2_us"] or 0.0,
            "frequency": 0.0,
            "ReadoutFidelity": 1.0 - ((qubit["p1_given_0"] or 0.0) + (qubit["p0_given_1"] or 0.0)) / 2,
            "SingleGateFidelity": 1.0 - (qubit["error_1q"] or 0.0),
        }
        for number, qubit in enumerate(qubits)
    ]
    times = data["native_gates"]
    return {
        "ChipID": chip,
        "QubitCount": len(qubits),
        "adjMatrix": adjacency,
        "QubitParams": parameters,
        "AvailableQubits": [number for number, qubit in enumerate(qubits) if qubit["enabled"]],
        "HighFrequencyQubit": [],
        "BasicQGate": ["RPhi", "CZ"],
        "CompensateAngle": {},
        "QGateClock": [
            {"gateType": "RPhi", "IntValue": round(times["rphi"]["time_ns"])},
            {"gateType": "CZ", "IntValue": round(times["cz"]["time_ns"])},
        ],
    }


async def best_blocks(context: Context) -> Response:
    """The best disjoint lines of `qubitNum` qubits by the chip's calibration; as many as there are, at most `qubitBlockNum`."""
    request = decode(_BLOCKS, await context.body())
    data = await _calibration(context, request.chipId)
    blocks = await context.service.ask(_lines, bytes(data), request.qubitNum, request.qubitBlockNum)
    return _reply(
        {
            "ChipID": request.chipId,
            "QubitNum": request.qubitNum,
            "Label": request.label,
            "QubitBlockNum": request.qubitBlockNum,
            "QubitBlocks": blocks,
        }
    )


@functools.lru_cache(maxsize=64)
def _lines(data: bytes, n_qubits: int, number: int) -> list[tuple[int, ...]]:
    from qpeft.backends.emulator.chip import Chip
    from qpeft.backends.emulator.routing import InteractionGraph, best_placement

    chip = Chip.from_json(data)
    pairs = tuple(((q, q + 1), 1) for q in range(n_qubits - 1))
    shape = InteractionGraph(n_qubits, pairs, (1,) * n_qubits, (1,) * n_qubits)
    blocks: list[tuple[int, ...]] = []
    free = set(chip.live_qubits)
    while len(blocks) < number and (place := best_placement(shape, chip, free)) is not None:
        blocks.append(place)
        free -= set(place)
    return blocks


async def submit(context: Context) -> Response:
    """A task of at most 200 programs, as text, binary or native instructions. The last two need pyqpanda3 on the server."""
    body = await context.body()
    task = decode(_TASK, body)
    if task.QMachineType not in _MACHINES:
        known = ", ".join(f"{number} ({what})" for number, what in _MACHINES.items())
        raise ServiceError(
            "this kind of task is not run here", status=422, code="machine", value=task.QMachineType[:20], bound=known
        )
    device = _device(context, task.ChipID)
    exact, shots = task.Configuration.measure_type == 2, task.Configuration.shot
    if not exact and not 1 <= shots < 2**31:
        raise ServiceError("a task has at least one shot", status=422, code="shots", value=shots, bound="1 or more")
    texts = await context.service.admit(context.owner, functools.partial(_programs, context.service), task, text=True)
    if not 0 < len(texts) <= MAX_PROGRAMS:
        raise ServiceError("a task has 1 to 200 programs", status=422, code="rows", value=len(texts), bound=MAX_PROGRAMS)
    request = BatchRequest(
        device=device,
        circuits=[BatchItem(originir=_measuring(text, task.Configuration.qubits) if exact else text) for text in texts],
        shots=None if exact else shots,
        output="probabilities" if exact else "counts",
        name="pyqpanda3",
    )
    build, digest = context.service.admission.batch, body_digest("/oqcs", body)
    submission = await context.service.admit(context.owner, build, request, None, digest, text=True)
    receipt = await context.service.writer.call(context.service.submit, submission)
    return _reply({"taskId": receipt.id})


def _programs(service: Service, _owner: str, task: QCloudTask) -> list[str]:
    """The task's programs as OriginIR text."""
    if task.QProg is not None:
        return [task.QProg] if isinstance(task.QProg, str) else task.QProg
    reader = service.admission.programs
    if task.QProgBytes is not None:
        return reader.texts(PYQPANDA_BINARY, bytes(number & 255 for number in task.QProgBytes))
    if task.Inst is not None:
        return [text for one in task.Inst[:MAX_PROGRAMS] for text in reader.texts(PYQPANDA_INSTRUCTIONS, bytes(one))]
    raise ServiceError("a task has programs", status=422, code="program", value="none", bound="QProg, QProgBytes, Inst")


def _measuring(text: str, qubits: list[int]) -> str:
    """The program with `qubits` measured, in this order, and nothing else."""
    kept = [line for line in text.splitlines() if line.split(" ")[0] not in ("MEASURE", "CREG")]
    head = next((k + 1 for k, line in enumerate(kept) if line.startswith("QINIT")), 0)
    measured = [f"MEASURE q[{qubit}],c[{bit}]" for bit, qubit in enumerate(qubits)]
    return "\n".join([*kept[:head], f"CREG {len(qubits)}", *kept[head:], *measured])


async def detail(context: Context) -> Response:
    """State and, once every program has ended, results: keys in hexadecimal with c[0] as the lowest bit."""
    task = decode(_TASK_ID, await context.body()).taskId
    queries = context.service.queries
    batch = await context.service.ask(queries.batch_view, context.owner, task)
    some = batch["state"] in TERMINAL and batch["states"].get("succeeded")  # of a failed task the client shows no results
    state = _STATES["succeeded"] if some else _STATES.get(batch["state"], "4")
    obj: dict[str, Any] = {"taskId": task, "taskState": state, "createTime": batch["created_at"]}
    if batch["state"] in TERMINAL:
        page = await context.service.ask(queries.batch_results, task, 0, MAX_PROGRAMS, MAX_TASK_BYTES)
        obj |= await context.service.ask(_results, page.rows)
    return _reply(obj)


def _results(rows: list[tuple[Row, bytes | None]]) -> dict[str, Any]:
    """Reply of `taskDetail` for ended programs, in order. A failed program has no outcomes, and the reply its reason."""
    counts = [_hexadecimal(payload) if payload is not None else ({}, 0) for _, payload in rows]
    told: dict[str, Any] = {
        "endTime": stamp(max((row.finished_at for row, _ in rows), default=None)),
        "taskResult": [
            _columns(list(count), [value / (row.shots or 1) for value in count.values()])
            for (count, _), (row, _) in zip(counts, rows, strict=True)
        ],
        "measureQubitSize": [bits for _, bits in counts],
    }
    if all(row.shots for row, _ in rows):  # the client takes whole numbers here, and nothing for exact probabilities
        told["probCount"] = [_columns(list(count), list(count.values())) for count, _ in counts]
    failed = [(number, row) for number, (row, _) in enumerate(rows) if row.state != "succeeded"]
    if failed:
        number, row = failed[0]
        told["errInfo"] = told["errorDetail"] = f"program {number}: {row.reason}" if len(rows) > 1 else row.reason
        told["errCode"] = 1
    return told


def _hexadecimal(payload: bytes) -> tuple[Mapping[str, float], int]:
    """Counts or probabilities by hexadecimal outcome, and how many bits an outcome has."""
    result = unpack_result(payload)
    if result.counts is not None:
        counts = result.counts[0]
        return {hex(int(word[::-1], 2)): n for word, n in counts.items()}, len(next(iter(counts)))
    values = memoryview(result.data).cast("d").tolist()
    bits = len(values).bit_length() - 1
    return {hex(int(f"{k:0{bits}b}"[::-1], 2)): value for k, value in enumerate(values) if value > 0}, bits


def _columns(keys: list[str], values: list[Any]) -> str:
    return msgspec.json.encode({"key": keys, "value": values}).decode()


async def cancel(context: Context) -> Response:
    """Cancel every program of a task that has not ended."""
    task = decode(_TASK_ID, await context.body()).taskId
    await context.service.writer.call(lifecycle.cancel, lifecycle.Target("batch", task, context.owner))
    return _reply(None)


ROUTES = [
    Route("GET", "/oqcs/task/getResourceList.json", "read", resources, "pyqpanda3: chips"),
    Route("POST", "/oqcs/task/origin/chipInfo.json", "read", chip_info, "pyqpanda3: a chip's calibration", ChipId, JSON),
    Route(
        "POST", "/oqcs/task/management/bestQubitBlocks.json", "read", best_blocks, "pyqpanda3: a chip's best qubits", Blocks, JSON
    ),
    Route("POST", "/oqcs/task/origin/submit.json", "submit", submit, "pyqpanda3: submit a task", QCloudTask, JSON),
    Route("POST", "/oqcs/task/origin/taskDetail.json", "read", detail, "pyqpanda3: state and results of a task", TaskId, JSON),
    Route("POST", "/oqcs/task/cancelTask.json", "submit", cancel, "pyqpanda3: cancel a task", TaskId, JSON),
]

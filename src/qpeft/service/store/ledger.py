"""Accounts kept next to the jobs, gathered in memory during an operation and written once at its end.

`flows`: how much each user has queued on each device in each lane, and its virtual time. `owners.open_circuits`: what counts
against a user's quota. `submitted`: what counts against the daily quotas. `usage`: jobs, circuits, shots and device seconds by
day, user and device.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from qpeft.errors import ServiceError
from qpeft.service.scheduling.fair_queueing import INTERACTIVE
from qpeft.service.store.quotas import day_of
from qpeft.service.store.schema import Row, devices, flows, owners, submitted, usage
from qpeft.service.store.writer import Transaction

FlowKey = tuple[str, str, int]  # device, owner, lane


def upsert(dialect: str, table: sa.Table) -> Any:
    """An INSERT that knows ON CONFLICT, in the database's own dialect.

    Args:
        dialect: "sqlite" or "postgresql".
        table: the table to insert into.
    """
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


@dataclass
class FlowState:
    """A flow in memory: virtual time, jobs queued, the user's weight; `new` is not in the table, `dirty` is to be written."""

    vtime: float
    queued: int
    weight: float
    new: bool = False
    dirty: bool = False


class AccountLedger:
    """`with` nothing: call its methods, then `close()` once."""

    def __init__(self, txn: Transaction) -> None:
        self.txn = txn
        self._flows: dict[FlowKey, FlowState] = {}
        self._owners: dict[str, Row] = {}
        self._devices: dict[str, Row] = {}
        self._device_vtime: dict[str, float] = {}
        self._open: dict[str, int] = defaultdict(int)
        self._bytes: dict[str, int] = defaultdict(int)
        self._vendor: dict[str, int] = defaultdict(int)
        self._submitted: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        self._usage: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0, 0.0])

    def owner(self, owner: str) -> Row:
        """The user's row."""
        if owner not in self._owners:
            self._owners[owner] = self.txn.connection.execute(_OWNER, {"owner": owner}).one()
        return self._owners[owner]

    def open_circuits(self, owner: str) -> int:
        """Circuits of the user that are queued or running, this operation's included."""
        return int(self.owner(owner).open_circuits) + self._open[owner]

    def device(self, device: str) -> Row:
        """The device's row; ServiceError 404 when there is none."""
        if device not in self._devices:
            row = self.txn.connection.execute(_DEVICE, {"device": device}).one_or_none()
            if row is None:
                raise ServiceError("no such device", status=404, code="no_device", value=device, hint="GET /v1/devices lists them")
            self._devices[device] = row
            self._device_vtime[device] = row.vtime
        return self._devices[device]

    def flow(self, key: FlowKey) -> FlowState:
        """The flow's state, made when there is none."""
        if key not in self._flows:
            row = self.txn.connection.execute(_FLOW, dict(zip(("device", "owner", "lane"), key, strict=True))).one_or_none()
            weight = float(self.owner(key[1]).weight)
            self._flows[key] = FlowState(0.0, 0, weight, new=True) if row is None else FlowState(row.vtime, row.queued, weight)
        return self._flows[key]

    def flows_of(self, device: str) -> dict[FlowKey, FlowState]:
        """The device's flows that have something queued."""
        for row in self.txn.connection.execute(_FLOWS, {"device": device}):
            key = (device, row.owner, row.lane)
            if key not in self._flows:
                self._flows[key] = FlowState(row.vtime, row.queued, row.weight)
        return {key: flow for key, flow in self._flows.items() if key[0] == device and flow.queued > 0}

    def enqueue(self, key: FlowKey, n: int) -> int:
        """Count more jobs in a flow's queue.

        Args:
            key: device, user and lane.
            n: number of jobs.

        Returns:
            How many were in the queue before.
        """
        flow = self.flow(key)
        before = flow.queued
        if before == 0:
            self.device(key[0])
            flow.vtime = max(flow.vtime, self._device_vtime[key[0]])
        flow.queued += n
        flow.dirty = True
        self.txn.changed.add(f"device:{key[0]}")
        if key[2] == INTERACTIVE:
            self.txn.changed.add(f"interactive:{key[0]}")
        return before

    def dequeue(self, key: FlowKey, n: int = 1) -> None:
        """Count fewer jobs in a flow's queue.

        Args:
            key: device, user and lane.
            n: number of jobs.
        """
        flow = self.flow(key)
        flow.queued -= n
        flow.dirty = True

    def charge(self, key: FlowKey, cost_s: float) -> None:
        """Add device seconds to a flow's virtual time.

        Args:
            key: device, user and lane.
            cost_s: device seconds; negative gives back.
        """
        flow = self.flow(key)
        flow.vtime += cost_s / flow.weight
        flow.dirty = True

    def served(self, device: str, start_tag: float) -> None:
        """Move the device's virtual time to the start tag of what it serves now.

        Args:
            device: name of the device.
            start_tag: the start tag of the jobs, from `select`.
        """
        self.device(device)
        self._device_vtime[device] = max(self._device_vtime[device], start_tag)

    def open(self, owner: str, circuits: int) -> None:
        """Count circuits as queued or running.

        Args:
            owner: id of the user.
            circuits: number of circuits; negative for circuits that ended.
        """
        self._open[owner] += circuits

    def stored_bytes(self, owner: str) -> int:
        """Bytes of parameters and results kept for the user, this operation's included."""
        return int(self.owner(owner).stored_bytes) + self._bytes[owner]

    def vendor_shots(self, owner: str) -> int:
        """Shots that the user has sent to vendors or reserved, this operation's included."""
        return int(self.owner(owner).vendor_shots) + self._vendor[owner]

    def spend(self, owner: str, shots: int) -> None:
        """Count shots as sent to a vendor, or as soon to be.

        Args:
            owner: id of the user.
            shots: number of shots; negative for shots that were not sent.
        """
        self._vendor[owner] += shots

    def submitted_today(self, owner: str) -> tuple[int, int]:
        """Circuits and shots that the user has submitted since midnight (UTC), this operation's included."""
        place = {"day": day_of(self.txn.now), "owner": owner}
        row = self.txn.connection.execute(_SUBMITTED, place).one_or_none()
        circuits, shots = self._submitted[place["day"], owner]
        return (circuits, shots) if row is None else (int(row.circuits) + circuits, int(row.shots) + shots)

    def submit(self, owner: str, circuits: int, shots: int, at: float) -> None:
        """Count circuits and shots as submitted.

        Args:
            owner: id of the user.
            circuits: number of circuits; negative for circuits that ended before they ran.
            shots: number of shots, of the same sign.
            at: when they were submitted, seconds since 1970; they count on that day.
        """
        total = self._submitted[day_of(at), owner]
        total[0] += circuits
        total[1] += shots

    def store(self, owner: str, n: int) -> None:
        """Count bytes as stored for a user.

        Args:
            owner: id of the user.
            n: number of bytes; negative for deleted ones.
        """
        self._bytes[owner] += n

    def use(self, owner: str, device: str, *, jobs: int, circuits: int, shots: int, device_s: float) -> None:
        """Add to the day's usage.

        Args:
            owner: id of the user.
            device: name of the device.
            jobs: number of jobs.
            circuits: number of circuits.
            shots: number of shots.
            device_s: device seconds.
        """
        total = self._usage[owner, device]
        for index, amount in enumerate((jobs, circuits, shots, device_s)):
            total[index] += amount

    def close(self) -> None:
        """Write everything that changed. The ledger is not used after it."""
        execute = self.txn.connection.execute
        new = [self._flow_values(key, flow) for key, flow in self._flows.items() if flow.dirty and flow.new]
        if new:
            execute(flows.insert(), new)
        if old := [_bound(self._flow_values(key, flow)) for key, flow in self._flows.items() if flow.dirty and not flow.new]:
            execute(_SET_FLOW, old)
        moved_owners = self._open.keys() | self._bytes.keys() | self._vendor.keys()
        if opened := [
            {"owner": owner, "n": self._open[owner], "bytes": self._bytes[owner], "shots": self._vendor[owner]}
            for owner in sorted(moved_owners)
            if self._open[owner] or self._bytes[owner] or self._vendor[owner]
        ]:
            execute(_ADD_OPEN, opened)
        moved = [{"device": d, "v": v} for d, v in self._device_vtime.items() if v != self._devices[d].vtime]
        if moved:
            execute(_SET_DEVICE, moved)
        self._write_submitted()
        if self._usage:
            execute(_add_usage(self.txn.connection.dialect.name), list(self._usage_values()))

    def _write_submitted(self) -> None:
        def rows(sign: int) -> list[dict[str, Any]]:
            return [
                {"day": day, "owner": owner, "circuits": circuits, "shots": shots}
                for (day, owner), (circuits, shots) in self._submitted.items()
                if sign * circuits > 0
            ]

        if more := rows(1):
            self.txn.connection.execute(_add_submitted(self.txn.connection.dialect.name), more)
        if less := rows(-1):
            self.txn.connection.execute(_GIVE_BACK, [_bound(row) for row in less])

    def _flow_values(self, key: FlowKey, flow: FlowState) -> dict[str, Any]:
        return {"device": key[0], "owner": key[1], "lane": key[2], "vtime": flow.vtime, "queued": flow.queued}

    def _usage_values(self) -> Iterable[dict[str, Any]]:
        day = day_of(self.txn.now)
        for (owner, device), (n_jobs, circuits, shots, device_s) in self._usage.items():
            amounts = {"jobs": int(n_jobs), "circuits": int(circuits), "shots": int(shots), "device_s": device_s}
            yield {"day": day, "owner": owner, "device": device, **amounts}


@functools.cache
def _add_usage(dialect: str) -> Any:
    return _adding(dialect, usage, ("day", "owner", "device"), ("jobs", "circuits", "shots", "device_s"))


@functools.cache
def _add_submitted(dialect: str) -> Any:
    return _adding(dialect, submitted, ("day", "owner"), ("circuits", "shots"))


def _adding(dialect: str, table: sa.Table, keys: Sequence[str], amounts: Sequence[str]) -> Any:
    """An INSERT that adds `amounts` to the row of the same `keys` where there is one."""
    insert = upsert(dialect, table)
    sums = {name: table.c[name] + insert.excluded[name] for name in amounts}
    return insert.on_conflict_do_update(index_elements=list(keys), set_=sums)


def _bound(values: dict[str, Any]) -> dict[str, Any]:
    return {f"b_{name}": value for name, value in values.items()}


_OWNER = sa.select(owners).where(owners.c.id == sa.bindparam("owner"))
_DEVICE = sa.select(devices).where(devices.c.id == sa.bindparam("device"))


def _left(name: str) -> sa.ColumnElement[int]:
    return submitted.c[name] + sa.bindparam(f"b_{name}")


_SUBMITTED = sa.select(submitted.c.circuits, submitted.c.shots).where(
    submitted.c.day == sa.bindparam("day"), submitted.c.owner == sa.bindparam("owner")
)
_GIVE_BACK = (  # not below zero: what was submitted before this was counted is not counted
    sa.update(submitted)
    .where(submitted.c.day == sa.bindparam("b_day"), submitted.c.owner == sa.bindparam("b_owner"))
    .values({name: sa.case((_left(name) > 0, _left(name)), else_=0) for name in ("circuits", "shots")})
)
_FLOW = sa.select(flows).where(*(flows.c[name] == sa.bindparam(name) for name in ("device", "owner", "lane")))
_FLOWS = (
    sa.select(flows, owners.c.weight)
    .join(owners, owners.c.id == flows.c.owner)
    .where(flows.c.device == sa.bindparam("device"), flows.c.queued > 0)
)
_SET_FLOW = (
    sa.update(flows)
    .where(*(flows.c[name] == sa.bindparam(f"b_{name}") for name in ("device", "owner", "lane")))
    .values(vtime=sa.bindparam("b_vtime"), queued=sa.bindparam("b_queued"))
)
_ADD_OPEN = (
    sa.update(owners)
    .where(owners.c.id == sa.bindparam("owner"))
    .values(
        open_circuits=owners.c.open_circuits + sa.bindparam("n"),
        stored_bytes=owners.c.stored_bytes + sa.bindparam("bytes"),
        vendor_shots=owners.c.vendor_shots + sa.bindparam("shots"),
    )
)
_SET_DEVICE = sa.update(devices).where(devices.c.id == sa.bindparam("device")).values(vtime=sa.bindparam("v"))

"""Who is served next: start-time fair queueing, charged in estimated seconds and corrected on completion.

Each flow (one user's queue on one device, in one lane) has a virtual time. The flow with the least is served and pays
`cost / weight` virtual seconds for it: device seconds, and what the service itself takes for any job, so that many tiny jobs
do not weigh nothing. The device's virtual time is the start tag of what it served last. A flow that was idle
starts at the device's virtual time: it has no claim to the time it did not use, and nobody waits behind its past. What a job
really took corrects its flow's virtual time when it ends. [Goyal, Vin, Cheng 1996]

The interactive lane (small single jobs) goes first, up to a share of each lease while bulk work waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

INTERACTIVE, BULK = 0, 1
MIN_COST_S = 1e-6
HANDLING_S = 7e-4  # of the service for one job, measured: docs/service.md
PEEK = 32  # jobs read at once from a flow that has rivals
SUSPECT_JOBS = 16  # jobs that lost a worker once are leased in groups of at most this; lost twice, alone


@dataclass
class Flow:
    """One user's queue on one device in one lane: virtual time in seconds per weight, jobs of this lease."""

    owner: str
    lane: int
    vtime: float
    weight: float
    taken: int = 0


class Candidate(NamedTuple):
    """A queued job: its place in the order of arrival, its estimate and how many workers it has cost."""

    seq: int
    estimate_s: float
    attempt: int


@dataclass(frozen=True)
class Selection:
    """The jobs of a lease, in order, and what they are estimated to cost together in device seconds."""

    jobs: tuple[int, ...]
    cost_s: float
    start_tag: float | None
    """The largest virtual time at which a job of this lease started; None when nothing was selected."""


Peek = Callable[[Flow, int], Sequence[Candidate]]
"""The flow's queued jobs in order of arrival, from number `flow.taken` on, at most as many as asked for."""


def select(flows: Sequence[Flow], peek: Peek, *, budget_s: float, max_jobs: int, share: float) -> Selection:
    """Choose the jobs of one lease and charge their flows (`vtime` and `taken` are changed in place).

    At least one job is chosen when one is queued, however large its estimate.

    Args:
        flows: the queues of one device; changed in place.
        peek: a flow's queued jobs.
        budget_s: device seconds of the lease.
        max_jobs: the most jobs.
        share: part of the budget for the interactive lane where other lanes wait, 0 to 1.

    Returns:
        The jobs, their cost and the start tag.
    """
    picker = _Picker(peek, max_jobs)
    interactive = [flow for flow in flows if flow.lane == INTERACTIVE]
    if interactive:
        picker.serve(interactive, budget_s if len(interactive) == len(flows) else budget_s * share)
    picker.serve([flow for flow in flows if flow.lane == BULK], budget_s)
    return Selection(tuple(picker.jobs), picker.cost_s, picker.start_tag)


class _Picker:
    def __init__(self, peek: Peek, max_jobs: int) -> None:
        self.peek, self.max_jobs = peek, max_jobs
        self.jobs: list[int] = []
        self.cost_s, self.closed = 0.0, False
        self.start_tag: float | None = None

    def serve(self, flows: list[Flow], budget_s: float) -> None:
        """Serve flows in order of virtual time until the lease holds `budget_s` device seconds."""
        waiting = list(flows)
        while waiting and not self._full(budget_s):
            flow = min(waiting, key=lambda flow: flow.vtime)
            rival = min((other.vtime for other in waiting if other is not flow), default=math.inf)
            room = self.max_jobs - len(self.jobs)
            candidates = self.peek(flow, room if rival == math.inf else min(room, PEEK))
            if not candidates:
                waiting.remove(flow)
            for candidate in candidates:
                if flow.vtime > rival:
                    break
                if self.jobs and (self.cost_s + candidate.estimate_s > budget_s or candidate.attempt >= 2):
                    return
                self._take(flow, candidate)
                if self._full(budget_s):
                    return

    def _full(self, budget_s: float) -> bool:
        return self.closed or len(self.jobs) >= self.max_jobs or (bool(self.jobs) and self.cost_s >= budget_s)

    def _take(self, flow: Flow, candidate: Candidate) -> None:
        cost_s = max(candidate.estimate_s, MIN_COST_S)
        self.start_tag = flow.vtime if self.start_tag is None else max(self.start_tag, flow.vtime)
        self.jobs.append(candidate.seq)
        self.cost_s += cost_s
        flow.vtime += (cost_s + HANDLING_S) / flow.weight
        flow.taken += 1
        if candidate.attempt >= 2:
            self.closed = True
        elif candidate.attempt == 1:
            self.max_jobs = min(self.max_jobs, SUSPECT_JOBS)

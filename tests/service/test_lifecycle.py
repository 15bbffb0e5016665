"""The store under random histories: every acknowledged job ends once, with one result; attempts grow; accounts agree."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from qpeft.errors import ServiceError
from qpeft.service.clock import Clock
from qpeft.service.store import leases, lifecycle
from qpeft.service.store.database import Database
from qpeft.service.store.schema import HELD, TERMINAL, flows, jobs, owners, results
from tests.service.engine import Engine

MAX_ATTEMPTS = 3


class StoreMachine(RuleBasedStateMachine):
    """Two users, up to three workers, and everything that can happen to a job. `url` is set by the tests."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        database = Database(self.url or f"sqlite:///{Path(self.folder.name) / 's.sqlite'}")
        database.migrate("base")
        database.migrate()
        self.engine = Engine(database, Clock(), max_attempts=MAX_ATTEMPTS, lease_budget_s=0.05, max_open_circuits=60)
        self.owners = [self.engine.user(f"user{i}") for i in range(2)]
        self.workers: list[str] = []
        self.held: dict[str, dict[int, int]] = {}
        self.stale: list[tuple[str, int, int]] = []
        self.keys: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.acknowledged: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.attempts: dict[str, int] = {}
        self.batches: dict[str, tuple[str, int]] = {}
        self.not_begun: Counter[str] = Counter()  # leases of a job given back without a reason: they do not count against it

    def _job_ids(self, batch: str) -> list[str]:
        with self.engine.database.reader.connect() as connection:
            return list(connection.execute(sa.select(jobs.c.id).where(jobs.c.batch == batch)).scalars())

    @rule(
        user=st.integers(0, 1), kind=st.sampled_from(["job", "batch"]), n=st.integers(1, 4), rows=st.integers(1, 5),
        cost=st.sampled_from([0.0, 0.001, 0.02, 0.2]), key=st.sampled_from([None, "a", "b"]), body=st.sampled_from([b"1", b"2"]),
        ttl=st.sampled_from([None, -1.0]),
    )  # fmt: skip
    def submit(self, user: int, kind: str, n: int, rows: int, cost: float, key: str | None, body: bytes, ttl: float | None) -> None:
        owner = self.owners[user]
        submission = self.engine.submission(
            owner, kind=kind, n=1 if kind == "job" else n, rows=rows, estimate_s=cost, key=key, digest=body, expires_s=ttl
        )
        earlier = self.keys.get((owner, key or "")) if key else None
        used = sum(row[3] for row in self._alive() if row[2] == owner)
        if earlier is None and used + submission.circuits > 60:
            with pytest.raises(ServiceError, match="too many circuits"):
                self.engine.submit(submission)
            return
        if earlier is not None and earlier[0] != body:
            with pytest.raises(ServiceError, match="another body"):
                self.engine.submit(submission)
            return
        receipt = self.engine.submit(submission)
        if earlier is not None:
            assert receipt.replayed
            assert (body, receipt.id) == earlier
            return
        assert not receipt.replayed
        if key:
            self.keys[owner, key] = (body, receipt.id)
        if kind == "batch":
            self.batches[receipt.id] = (owner, len(submission.items))
        self.acknowledged.update((item.id, owner) for item in submission.items)

    @precondition(lambda self: len(self.workers) < 3)
    @rule()
    def start_worker(self) -> None:
        worker = self.engine.hello(self.owners[0])
        self.workers.append(worker)
        self.held[worker] = {}

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), max_jobs=st.integers(1, 8), answer_lost=st.booleans())
    def lease(self, data: st.DataObject, max_jobs: int, answer_lost: bool) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        held = self.held[worker]
        lease = self.engine.lease(worker, self.owners[0], tuple(held.items()), max_jobs)
        assert len(lease.jobs) <= max_jobs
        assert all(row.state == "running" and row.worker == worker for row in lease.jobs)
        for seq in lease.drop:
            self.stale.append((worker, seq, held.pop(seq)))
        if not answer_lost:
            held.update((row.seq, row.attempt) for row in lease.jobs)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), good=st.booleans(), released=st.booleans(), again=st.booleans(), device_s=st.floats(0, 1))
    def complete(self, data: st.DataObject, good: bool, released: bool, again: bool, device_s: float) -> None:
        worker = data.draw(st.sampled_from([w for w, held in self.held.items() if held]))
        held = self.held[worker]
        seqs = data.draw(st.lists(st.sampled_from(sorted(held)), min_size=1, max_size=4, unique=True))
        endings = [
            leases.JobOutcome(seq, held.pop(seq), b"result" if good else None, "" if good else "bad", device_s, None, released)
            for seq in seqs
        ]
        first = self.engine.complete(worker, self.owners[0], endings)
        assert all(first)
        if released and good:
            with self.engine.database.reader.connect() as connection:
                self.not_begun.update(connection.execute(sa.select(jobs.c.id).where(jobs.c.seq.in_(seqs))).scalars())
        if again and not released:
            assert all(self.engine.complete(worker, self.owners[0], endings))

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def stale_complete(self, data: st.DataObject) -> None:
        worker, seq, attempt = data.draw(st.sampled_from(self.stale))
        before = self._states()
        with contextlib.suppress(ServiceError):  # a worker given up as lost is told so
            self.engine.complete(worker, self.owners[0], [leases.JobOutcome(seq, attempt, b"late", "", 0.0, None)])
        after = self._states()
        assert all(after[job][0] == state or before[job][0] == "cancelling" for job, (state, _, _) in before.items())

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def kill_worker(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        self.workers.remove(worker)
        self.engine.lose(worker)
        self.stale += [(worker, seq, attempt) for seq, attempt in self.held.pop(worker).items()]

    @precondition(lambda self: self.acknowledged)
    @rule(data=st.data(), foreign=st.booleans())
    def cancel(self, data: st.DataObject, foreign: bool) -> None:
        job = data.draw(st.sampled_from(sorted(self.acknowledged)))
        owner = self.acknowledged[job]
        if foreign:
            with pytest.raises(ServiceError, match="no such job"):
                self.engine.cancel("job", job, next(o for o in self.owners if o != owner))
            return
        self.engine.cancel("job", job, owner)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def cancel_batch(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(sorted(self.batches)))
        self.engine.cancel("batch", batch, self.batches[batch][0])

    @rule()
    def expire(self) -> None:
        self.engine.writer.call_sync(lifecycle.expire, None)

    def _alive(self) -> list[tuple[str, str, str, int]]:
        with self.engine.database.reader.connect() as connection:
            alive = sa.select(jobs.c.id, jobs.c.state, jobs.c.owner, jobs.c.rows).where(jobs.c.state.not_in(TERMINAL))
            return [tuple(row) for row in connection.execute(alive)]

    def _states(self) -> dict[str, tuple[str, int, str]]:
        with self.engine.database.reader.connect() as connection:
            rows = connection.execute(sa.select(jobs.c.id, jobs.c.state, jobs.c.attempt, jobs.c.owner)).all()
        return {row.id: (row.state, row.attempt, row.owner) for row in rows}

    @invariant()
    def jobs_are_kept_and_ends_are_final(self) -> None:
        states = self._states()
        assert set(states) == set(self.acknowledged)
        for job, (state, attempt, owner) in states.items():
            assert owner == self.acknowledged[job]
            assert self.attempts.get(job, 0) <= attempt <= MAX_ATTEMPTS + self.not_begun[job]
            self.attempts[job] = attempt
            if job in self.ended:
                assert state == self.ended[job]
            elif state in TERMINAL:
                self.ended[job] = state
            assert state != "running" or attempt > 0

    @invariant()
    def accounts_agree(self) -> None:
        with self.engine.database.reader.connect() as connection:
            alive = jobs.c.state.not_in(TERMINAL)
            open_rows = dict(
                connection.execute(sa.select(jobs.c.owner, sa.func.sum(jobs.c.rows)).where(alive).group_by(jobs.c.owner)).all()
            )
            for row in connection.execute(sa.select(owners)):
                assert row.open_circuits == open_rows.get(row.id, 0)
                assert row.open_circuits <= 60
            key = (jobs.c.device, jobs.c.owner, jobs.c.lane)
            queued = {
                tuple(row[:3]): row[3]
                for row in connection.execute(sa.select(*key, sa.func.count()).where(jobs.c.state == "queued").group_by(*key))
            }
            kept = {(r.device, r.owner, r.lane): r.queued for r in connection.execute(sa.select(flows).where(flows.c.queued != 0))}
            assert kept == queued
            succeeded = set(connection.execute(sa.select(jobs.c.seq).where(jobs.c.state == "succeeded")).scalars())
            assert set(connection.execute(sa.select(results.c.seq)).scalars()) == succeeded

    def teardown(self) -> None:
        """Whatever happened, a good worker brings every job to an end."""
        for worker in self.workers:
            self.engine.lose(worker)
        worker = self.engine.hello(self.owners[0])
        while (lease := self.engine.lease(worker, self.owners[0])).jobs:
            endings = [leases.JobOutcome(row.seq, row.attempt, b"result", "", 0.0, None) for row in lease.jobs]
            assert all(self.engine.complete(worker, self.owners[0], endings))
        states = self._states()
        assert all(state in TERMINAL and state not in HELD for state, _, _ in states.values())
        self.jobs_are_kept_and_ends_are_final()
        self.accounts_agree()
        with self.engine.database.reader.connect() as connection:
            assert all(not n for n in connection.execute(sa.select(owners.c.open_circuits)).scalars())
            if self.engine.database.sqlite:
                assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        self.engine.close()
        self.folder.cleanup()


_RUN = settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))


def test_random_histories_on_sqlite() -> None:
    run_state_machine_as_test(StoreMachine, settings=_RUN)


@pytest.mark.postgres
def test_random_histories_on_postgresql(postgres_url: str) -> None:
    class OnPostgres(StoreMachine):
        url = postgres_url

    run_state_machine_as_test(OnPostgres, settings=settings(_RUN, max_examples=5))

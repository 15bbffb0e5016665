"""The scheduler alone: shares, bounds, suspects; and the store's use of it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qpeft.errors import ServiceError
from qpeft.service.scheduling.fair_queueing import BULK, HANDLING_S, INTERACTIVE, SUSPECT_JOBS, Candidate, Flow, select
from qpeft.service.store import leases
from tests.service.engine import Engine


def peek_of(queues: dict[tuple[str, int], list[Candidate]]) -> Callable[[Flow, int], Sequence[Candidate]]:
    return lambda flow, limit: queues[flow.owner, flow.lane][flow.taken : flow.taken + limit]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a machine may be busy
@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.lists(st.floats(0.001, 0.1), min_size=20, max_size=20)), min_size=2, max_size=4),
)
def test_backlogged_users_get_time_by_their_weights(users: list[tuple[float, list[float]]]) -> None:
    """Start-time fair queueing: after every lease, normalised service of any two flows differs by at most one job of each.

    The costs of a user's jobs repeat, so that no queue ever ends.
    """
    costs = {(str(i), BULK): user[1] for i, user in enumerate(users)}
    numbers = {(str(i), BULK): i * 10**6 for i in range(len(users))}

    def peek(flow: Flow, limit: int) -> list[Candidate]:
        key = (flow.owner, flow.lane)
        ahead = range(flow.taken, flow.taken + limit)
        return [Candidate(numbers[key] + k, costs[key][k % 20], 0) for k in ahead]

    flows = [Flow(str(i), BULK, 0.0, weight) for i, (weight, _) in enumerate(users)]
    served: Counter[str] = Counter()
    for _ in range(60):
        selection = select(flows, peek, budget_s=0.1, max_jobs=20, share=0.25)
        assert selection.jobs
        for seq in selection.jobs:
            owner = str(seq // 10**6)
            served[owner] += costs[owner, BULK][seq % 10**6 % 20] + HANDLING_S
        shares = [(served[str(i)] / weight, (0.1 + HANDLING_S) / weight) for i, (weight, _) in enumerate(users)]
        for (one, bound), (other, other_bound) in itertools.combinations(shares, 2):
            assert abs(one - other) <= bound + other_bound + 1e-9


def test_tiny_jobs_pay_for_their_handling() -> None:
    """A user who had a second of the device waits while another's jobs of a microsecond take a second of the service."""
    queues = {("long", BULK): [Candidate(0, 1.0, 0)], ("tiny", BULK): [Candidate(k, 1e-6, 0) for k in range(1, 5000)]}
    flows = [Flow("long", BULK, 1.0, 1), Flow("tiny", BULK, 0.0, 1)]
    before = 0
    while 0 not in (jobs := select(flows, peek_of(queues), budget_s=0.1, max_jobs=96, share=0.25).jobs):
        before += len(jobs)
        for flow in flows:
            queues[flow.owner, BULK] = queues[flow.owner, BULK][flow.taken :]
            flow.taken = 0
    assert before * HANDLING_S == pytest.approx(1.0, rel=0.1)


def test_a_lease_keeps_to_its_budget_and_always_moves() -> None:
    queues = {("a", BULK): [Candidate(1, 5.0, 0), Candidate(2, 0.01, 0)]}
    assert select([Flow("a", BULK, 0, 1)], peek_of(queues), budget_s=0.1, max_jobs=9, share=0.25).jobs == (1,)
    queues = {("a", BULK): [Candidate(k, 0.03, 0) for k in range(9)]}
    assert select([Flow("a", BULK, 0, 1)], peek_of(queues), budget_s=0.1, max_jobs=9, share=0.25).jobs == (0, 1, 2)
    assert select([], peek_of({}), budget_s=0.1, max_jobs=9, share=0.25).start_tag is None


def test_the_interactive_lane_goes_first_within_its_share() -> None:
    queues = {
        ("a", BULK): [Candidate(k, 0.01, 0) for k in range(100)],
        ("b", INTERACTIVE): [Candidate(1000 + k, 0.01, 0) for k in range(100)],
    }
    flows = [Flow("a", BULK, 0.0, 1), Flow("b", INTERACTIVE, 50.0, 1)]
    jobs = select(flows, peek_of(queues), budget_s=0.1, max_jobs=100, share=0.25).jobs
    assert jobs[:2] == (1000, 1001)
    assert sum(job >= 1000 for job in jobs) == 2
    assert len(jobs) == 10


def test_jobs_that_cost_workers_run_in_small_company_then_alone() -> None:
    once = {("a", BULK): [Candidate(k, 0.0, 1) for k in range(100)]}
    assert len(select([Flow("a", BULK, 0, 1)], peek_of(once), budget_s=1, max_jobs=64, share=0.25).jobs) == SUSPECT_JOBS
    twice = {("a", BULK): [Candidate(0, 0.0, 0), Candidate(1, 0.0, 2), Candidate(2, 0.0, 0)]}
    flow = Flow("a", BULK, 0, 1)
    assert [select([flow], peek_of(twice), budget_s=1, max_jobs=64, share=0.25).jobs for _ in range(3)] == [(0,), (1,), (2,)]


def test_another_users_job_is_next_whatever_waits(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(lease_budget_s=0.05)
    heavy, light = engine.user("heavy"), engine.user("light")
    worker = engine.hello(heavy)
    engine.submit(engine.submission(heavy, kind="batch", n=500, estimate_s=0.01))
    for _ in range(20):
        lease = engine.lease(worker, heavy)
        engine.complete(worker, heavy, [leases.JobOutcome(j.seq, j.attempt, b"r", "", 0.01, None) for j in lease.jobs])
    job = engine.submit(engine.submission(light, estimate_s=0.01))
    assert job.id in {row.id for row in engine.lease(worker, heavy).jobs}


def test_a_user_pays_for_what_was_underestimated(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(lease_budget_s=0.001)
    honest, modest = engine.user("honest"), engine.user("modest")
    worker = engine.hello(honest)
    for owner in (honest, modest):
        engine.submit(engine.submission(owner, kind="batch", n=60, estimate_s=0.01))
    served: Counter[str] = Counter()
    for _ in range(44):
        (row,) = engine.lease(worker, honest).jobs
        took = 0.10 if row.owner == modest else 0.01
        served[row.owner] += took
        engine.complete(worker, honest, [leases.JobOutcome(row.seq, row.attempt, b"r", "", took, None)])
    assert abs(served[honest] - served[modest]) <= 0.2


def test_a_poison_job_fails_at_its_last_attempt_and_blocks_nobody(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_attempts=3, lease_budget_s=1.0)
    owner = engine.user("u")
    poison = engine.submit(engine.submission(owner, estimate_s=0.0)).id
    others = [engine.submit(engine.submission(owner, estimate_s=0.0)).id for _ in range(20)]
    for _ in range(60):
        worker = engine.hello(owner)
        lease = engine.lease(worker, owner)
        if not lease.jobs:
            break
        if any(row.id == poison for row in lease.jobs):
            engine.lose(worker)
        else:
            engine.complete(worker, owner, [leases.JobOutcome(j.seq, j.attempt, b"r", "", 0.0, None) for j in lease.jobs])
    dead = engine.queries.job(owner, poison)
    assert (dead.state, dead.attempt) == ("failed", 3)
    assert "attempt 3 of 3" in dead.reason
    assert {engine.queries.job(owner, other).state for other in others} == {"succeeded"}


def test_a_worker_takes_over_from_the_one_that_had_its_name(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    owner, stranger = engine.user("u"), engine.user("stranger")
    engine.submit(engine.submission(owner, kind="batch", n=4))
    first, other = engine.hello(owner, name="one"), engine.hello(owner, name="two")
    held, kept = engine.lease(first, owner, max_jobs=2).jobs, engine.lease(other, owner, max_jobs=2).jobs
    engine.hello(stranger, name="two")
    second = engine.hello(owner, name="one")
    assert [row.seq for row in engine.lease(second, owner).jobs] == [row.seq for row in held]
    with pytest.raises(ServiceError, match="given up"):
        engine.complete(first, owner, [leases.JobOutcome(j.seq, j.attempt, b"late", "", 0.0, None) for j in held])
    assert engine.complete(other, owner, [leases.JobOutcome(j.seq, j.attempt, b"r", "", 0.0, None) for j in kept]) == [True, True]


@pytest.mark.parametrize("backend", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_migrations_forward_and_back_with_jobs_in_the_queue(
    make_engine: Callable[..., Engine], backend: str, request: pytest.FixtureRequest
) -> None:
    engine = make_engine(request.getfixturevalue("postgres_url") if backend == "postgres" else None)
    owner = engine.user("u")
    waiting = engine.submit(engine.submission(owner, kind="batch", n=5))
    worker = engine.hello(owner)
    held = engine.lease(worker, owner, max_jobs=2).jobs
    engine.database.reader.dispose()
    engine.database.migrate("0001")
    engine.database.migrate("head")
    assert all(engine.complete(worker, owner, [leases.JobOutcome(j.seq, j.attempt, b"r", "", 0.0, None) for j in held]))
    assert len(engine.lease(worker, owner).jobs) == 3
    assert engine.queries.batch_view(owner, waiting.id)["states"] == {"succeeded": 2, "running": 3}


def test_revisions_of_the_schema_are_one_line() -> None:
    """Each has a number of its own, and follows the one before."""
    from alembic.script import ScriptDirectory

    from qpeft.service.store.database import _alembic_config, revisions

    known = revisions()
    assert known == [f"{k:04d}" for k in range(1, len(known) + 1)]
    assert ScriptDirectory.from_config(_alembic_config()).get_current_head() == known[-1]

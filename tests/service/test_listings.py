"""The questions of the dashboard's lists, on both databases."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qpeft.service.store.leases import Heartbeat, heartbeat
from qpeft.service.store.listings import BatchFilter, JobFilter, Listings
from tests.service.engine import Engine


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(request.getfixturevalue("postgres_url") if request.param == "postgres" else None)


def test_every_question_has_its_answer(engine: Engine) -> None:
    ask = Listings(engine.database.reader)
    alice, bob = engine.user("Alice"), engine.user("bob_50%")
    batch = engine.submit(engine.submission(alice, kind="batch", n=5)).id
    single = engine.submit(engine.submission(alice)).id
    engine.submit(engine.submission(bob, kind="batch", n=3))
    rows = ask.job_page(alice, JobFilter(), None, None, 50)
    assert rows[0].id == single
    assert len(rows) == 6
    assert [row.seq for row in ask.job_page(alice, JobFilter(), None, rows[3].seq, 2)] == [rows[1].seq, rows[2].seq]
    assert [row.seq for row in ask.job_page(alice, JobFilter(), rows[3].seq, None, 2)] == [rows[4].seq, rows[5].seq]
    assert [row.id for row in ask.job_page(alice, JobFilter(text=single), None, None, 9)] == [single]
    assert ask.job_page(bob, JobFilter(text=single), None, None, 9) == []
    assert ask.job_page(alice, JobFilter("queued", "simulator", "%", batch), None, None, 9) == []
    assert len(ask.job_page(alice, JobFilter("queued", "simulator", "", batch), None, None, 9)) == 5
    assert ask.state_counts(alice) == {"queued": 6}
    waiting, total = ask.waiting(alice, "simulator", 1000.0, 3)
    assert (total, [one.expected_start for one in waiting]) == (6, [None] * 3)
    assert [one.position for one in waiting] == sorted(one.position for one in waiting)
    assert {row.name: row.queued for row in ask.queue_by_user("simulator") if row.lane == 1} == {"Alice": 5, "bob_50%": 3}
    worker = engine.hello(alice)
    assert ask.waiting(alice, "simulator", 1000.0, 1)[0][0].expected_start >= 1000.0
    leased = engine.lease(worker, alice, max_jobs=2).jobs
    places = tuple((row.seq, [1, 2]) for row in leased)
    engine.writer.call_sync(heartbeat, Heartbeat(worker, alice, tuple((row.seq, row.attempt) for row in leased), places))
    assert {one.row.seq: one.qubits for one in ask.occupied("simulator")} == {row.seq: (1, 2) for row in leased}
    assert ask.occupied("other") == []
    assert [one["id"] for one in ask.batch_page(alice, BatchFilter(), None, None, 9)] == [batch]
    assert (
        ask.batch_page(alice, BatchFilter(device="other"), None, None, 9)
        == ask.batch_page(alice, BatchFilter(), batch, None, 9)
        == []
    )
    assert ask.batch_page(alice, BatchFilter(), None, batch, 9) == []
    assert [row.name for row in ask.key_page("B_50%", 0, 9)] == ["bob_50%"]
    assert [row.act for row in ask.log_page("", None, 1)] == [row.act for row in ask.log_page("", None, 9)][:1]
    assert ask.log_page("nothing like it", None, 9) == []
    for table in ("keys", "workers", "vendor-tasks", "audit"):
        assert all("digest" not in row for row in ask.everything(table))
    assert len(list(ask.everything("keys"))) == 2
    assert ask.last_on(alice, "simulator") is None
    assert ask.calibration_history("simulator", 3) == []
    assert ask.program("0" * 64) is not None

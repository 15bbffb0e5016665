"""Daily quotas on both databases: what counts, what is refused and in which words, what is given back, when they begin anew."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from qpeft.errors import ServiceError
from qpeft.service.store import admin
from qpeft.service.store.listings import BatchFilter, Listings
from qpeft.service.store.queries import BATCH_STATES
from qpeft.service.store.quotas import day_of, seconds_left
from tests.service.checks import RY
from tests.service.engine import Engine
from tests.service.processes import Server

BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture
def make(request: pytest.FixtureRequest, make_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    return lambda **settings: make_engine(
        request.getfixturevalue("postgres_url") if request.param == "postgres" else None, **settings
    )


def refused(engine: Engine, owner: str, **submission: object) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        engine.submit(engine.submission(owner, **submission))  # type: ignore[arg-type]
    return caught.value


def used(engine: Engine, owner: str) -> tuple[int, int]:
    rows = engine.queries.submitted(owner, day_of(engine.clock.now()))
    return (int(rows[0].circuits), int(rows[0].shots)) if rows else (0, 0)


@pytest.mark.parametrize("make", BOTH, indirect=True)
def test_a_day_is_counted_refused_and_given_back(make: Callable[..., Engine]) -> None:
    engine = make(user_day_circuits=10)
    alice, bob = engine.user("alice"), engine.user("bob", max_day_circuits=1000, max_day_shots=500)
    batch = engine.submit(engine.submission(alice, kind="batch", n=3, rows=2)).id
    first = engine.submission(alice, key="k")
    engine.submit(first)
    assert used(engine, alice) == (7, 700)
    assert engine.submit(first).replayed  # an idempotency key counts once
    assert used(engine, alice) == (7, 700)
    error = refused(engine, alice, rows=4)
    assert (error.status, error.code) == (429, "day_quota")
    assert error.retry_after_s is not None
    assert 0 < error.retry_after_s <= 86400
    assert "more circuits than your daily quota leaves" in str(error)
    assert "7 today and 4 more" in str(error)
    assert used(engine, alice) == (7, 700)
    engine.submit(engine.submission(alice, rows=3))
    assert "your daily quota of circuits is used up" in str(refused(engine, alice))
    never = refused(engine, alice, rows=11)
    assert (never.status, never.retry_after_s) == (403, None)  # waiting would not help
    worker = engine.hello(alice)
    leased = engine.lease(worker, alice, max_jobs=1).jobs
    engine.cancel("batch", batch, alice)
    assert used(engine, alice)[0] == 10 - 6 + sum(job.rows for job in leased if job.rows == 2)  # what had not begun is given back
    assert "shots" in str(refused(engine, bob, rows=6))
    engine.submit(engine.submission(bob, rows=5))
    assert used(engine, bob) == (5, 500)
    engine.writer.now += seconds_left(engine.writer.now) + 1  # the writer's time never goes back
    engine.submit(engine.submission(bob, rows=5))
    assert [int(row.shots) for row in engine.queries.submitted(bob, "2000-01-01")] == [500, 500]


@pytest.mark.parametrize("make", BOTH, indirect=True)
def test_a_users_quota_is_set_and_reset(make: Callable[..., Engine]) -> None:
    engine = make(user_day_circuits=2)
    owner = engine.user("u")
    refused(engine, owner, rows=3)
    engine.writer.call_sync(admin.set_user, admin.SetUser("a", "u", max_day_circuits=5))
    engine.submit(engine.submission(owner, rows=3))
    engine.writer.call_sync(admin.set_user, admin.SetUser("a", "u", reset=("max_day_circuits",)))
    refused(engine, owner)
    engine.writer.call_sync(admin.set_user, admin.SetUser("a", "u", max_day_circuits=100, max_open_circuits=0))
    assert refused(engine, owner).code == "quota"  # no circuit at all may be open
    assert [row.detail for row in engine.queries.audit(2)] == [
        "u: max_open_circuits=0 max_day_circuits=100", "u: max_day_circuits=default"
    ]  # fmt: skip


@pytest.mark.parametrize("make", BOTH, indirect=True)
def test_batches_are_found_by_the_state_that_they_show(make: Callable[..., Engine]) -> None:
    engine = make()
    owner = engine.user("u")
    ask = Listings(engine.database.reader)
    made = [engine.submit(engine.submission(owner, kind="batch", n=2, estimate_s=1.0)).id for _ in range(4)]
    engine.cancel("batch", made[0], owner)
    worker = engine.hello(owner)
    assert len(engine.lease(worker, owner, max_jobs=1).jobs) == 1
    engine.submit(engine.submission(owner))  # a job of no batch
    found = {state: [one["id"] for one in ask.batch_page(owner, BatchFilter(state), None, None, 9)] for state in BATCH_STATES}
    shown = {one["id"]: one["state"] for one in ask.batch_page(owner, BatchFilter(), None, None, 9)}
    assert sorted(one for ids in found.values() for one in ids) == sorted(made)
    assert all(shown[one] == state for state, ids in found.items() for one in ids)
    assert {"queued", "running", "cancelled"} <= set(shown.values())
    assert ask.batch_page(owner, BatchFilter("cancelled", "simulator", made[0]), None, None, 9)[0]["id"] == made[0]
    assert ask.batch_page(owner, BatchFilter("cancelled"), made[0], None, 9) == []


def test_the_operator_sets_and_the_user_is_told(sqlite_server: Callable[..., Server]) -> None:
    server = sqlite_server()
    key = server.new_key("carla")

    def cli(*words: str, holder: str) -> str:
        command = [sys.executable, "-m", "qpeft.cli", *words, "--url", server.url, "--key", holder]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    def quota(*options: str) -> dict[str, object]:
        return dict(json.loads(cli("service", "quota", "carla", *options, "--json", holder=server.key))[0])

    assert quota("--day-circuits", "3", "--day-shots", "20")["max_day_circuits"] == 3
    client = server.client(key, total_s=1.0)
    client.submit(RY, device="simulator", params=[0.1], shots=15)
    with pytest.raises(ServiceError, match="more shots than your daily quota leaves"):
        client.submit(RY, device="simulator", params=[0.1], shots=6)
    told = client.usage()
    assert {name: told[name] for name in ("day_circuits", "max_day_circuits", "day_shots", "max_day_shots")} == {
        "day_circuits": 1, "max_day_circuits": 3, "day_shots": 15, "max_day_shots": 20,
    }  # fmt: skip
    assert [(one["user"], one["circuits"], one["shots"]) for one in told["submitted"]] == [("carla", 1, 15)]
    assert re.search(r"day shots +│ +15 │ +20", cli("usage", holder=key))
    assert quota("--reset", "day-shots")["max_day_shots"] is None
    shown = cli("service", "quota", "carla", holder=server.key)
    for row in (
        r"day circuits +│ +1 │ +3 │ +user",
        r"day shots +│ +15 │ +no bound │ +service",
        r"open circuits .* 2,000,000 │ +service",
    ):
        assert re.search(row, shown), shown
    client.submit(RY, device="simulator", params=[0.1], shots=6)

"""What administrators set: who may use a device and when, priorities, keys that rotate, webhooks, the audit log. Both databases."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qpeft.errors import ServiceError
from qpeft.service.client import Client
from tests.service.checks import RY, until
from tests.service.processes import Server

HOOKS = {"QPEFT_SERVICE_WEBHOOK_HOSTS": '["127.0.0.1"]'}


def submit(client: Client, **settings: Any) -> str:
    return str(client.submit(RY, device="simulator", params=[0.1], shots=5, **settings)["id"])


def refusal(work: Callable[[], object]) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        work()
    return caught.value


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest, sqlite_server: Callable[..., Server]) -> Server:
    database = ["--database", request.getfixturevalue("postgres_url")] if request.param == "postgres" else []
    return sqlite_server(*database, environment=HOOKS)


class Receiver:
    """What webhooks are posted to; refuses the first `failures` deliveries."""

    def __init__(self, failures: int) -> None:
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.failures = failures
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
                receiver.failures -= 1
                self.send_response(500 if receiver.failures >= 0 else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/ended"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver(failures=1)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_an_operators_day(place: Server, receiver: Receiver) -> None:
    """One server for all of it: starting one takes seconds."""
    admin = place.client()
    keys = {name: place.new_key(name) for name in ("alice", "bob")}
    alice, bob = (place.client(key) for key in keys.values())
    access_lists(admin, alice, bob)
    quotas(place, admin, keys["alice"])
    reservations(admin, alice, bob)
    priorities(admin, alice)
    rotation(place, admin, alice, keys["alice"])
    webhooks(place, admin, bob, receiver)
    audit(place, admin, bob)


def access_lists(admin: Client, alice: Client, bob: Client) -> None:
    assert refusal(lambda: alice.set_access("simulator", None)).status == 403
    assert refusal(lambda: admin.set_access("simulator", ["nobody-of-this-name"])).status == 404
    assert refusal(lambda: admin.set_access("nope", None)).status == 404
    admin.set_access("simulator", ["alice"])
    assert admin.devices()[0]["restricted"] is True
    alice.result(submit(alice))
    refused = refusal(lambda: submit(bob))
    assert (refused.status, refused.code) == (403, "device_access")
    admin.set_access("simulator", None)
    bob.result(submit(bob))


def quotas(place: Server, admin: Client, key: str) -> None:
    """Set, exceeded, told, raised, gone on with; 0 is no circuit at all and not the service's default."""
    alice = place.client(key, total_s=0.1)  # a client goes on trying until it may, else
    admin.set_device("simulator", "maintenance")
    for bound, bounds in (("0", {"max_open_circuits": 0}), ("0 bytes", {"max_open_circuits": 9, "max_stored_bytes": 0})):
        admin.set_user("alice", **bounds)
        refused = refusal(lambda: submit(alice))
        assert (refused.status, refused.code) == (429, "quota")
        assert f"allowed: {bound}; hint:" in str(refused)
    admin.set_user("alice", max_open_circuits=1, max_stored_bytes=1 << 20)
    job = submit(alice)
    assert "qpeft service quota" in str(refusal(lambda: submit(alice)))
    admin.set_user("alice", max_open_circuits=2)
    jobs = [job, submit(alice)]
    assert (alice.usage()["open_circuits"], alice.usage()["max_open_circuits"]) == (2, 2)
    admin.set_device("simulator", "online")
    assert [alice.wait(one)["state"] for one in jobs] == ["succeeded"] * 2
    admin.set_user("alice", max_open_circuits=1000)
    assert refusal(lambda: admin.set_user("nobody-of-this-name", max_open_circuits=1)).status == 404
    assert refusal(lambda: alice.set_user("alice", max_open_circuits=1000)).status == 403


def reservations(admin: Client, alice: Client, bob: Client) -> None:
    soon = admin.reserve("simulator", "bob", 3600, starts_in_s=7200, note="bob's secret plan")
    made = admin.reserve("simulator", "alice", 3600)
    assert refusal(lambda: admin.reserve("simulator", "bob", 60)).code == "reserved"
    assert refusal(lambda: bob.reserve("simulator", "bob", 60)).status == 403
    assert [one["user"] for one in bob.reservations("simulator")] == [None, "bob"]
    waiting = submit(bob)
    alice.result(submit(alice))
    job = bob.job(waiting)
    assert (job["state"], job["expected_start"]) == ("queued", made["ends_at"])
    admin.cancel_reservation(made["id"])
    bob.result(waiting)
    admin.cancel_reservation(soon["id"])
    assert refusal(lambda: admin.cancel_reservation(soon["id"])).status == 404
    assert admin.reservations() == []


def priorities(admin: Client, alice: Client) -> None:
    admin.set_device("simulator", "maintenance")
    order = {name: submit(alice, priority=name, exclusive=True) for name in ("low", "normal", "high")}
    place = {name: alice.job(job)["queue_position"] for name, job in order.items()}
    assert place == {"high": 0, "normal": 1, "low": 2}
    assert refusal(lambda: submit(alice, priority="urgent")).status == 422
    admin.set_device("simulator", "online")
    for job in order.values():
        assert alice.job(job, wait_s=20)["state"] == "succeeded"
    assert alice.job(order["low"])["priority"] == "low"


def rotation(place: Server, admin: Client, alice: Client, key: str) -> None:
    prefix = key.split("_")[0]
    others = place.new_key("bob").split("_")[0]
    assert refusal(lambda: alice.rotate_key(others)).status == 404
    new = alice.rotate_key(prefix, grace_s=3600)
    with place.client(new["key"]) as fresh:
        assert fresh.devices()
        assert [one["prefix"] for one in fresh.my_keys() if one["current"]] == [new["prefix"]]
        assert alice.devices()  # the old one, for an hour
        newest = fresh.rotate_key(new["prefix"], grace_s=0)
    with place.client(newest["key"]) as fresh:
        assert fresh.devices()
    with place.client(new["key"], total_s=0.1) as old:
        until(lambda: is_refused(old))
    assert refusal(lambda: admin.rotate_key(new["prefix"])).status == 404
    until(lambda: place.http(key).get("/v1/devices").status_code == 200)


def is_refused(client: Client) -> bool:
    try:
        client.devices()
    except ServiceError as error:
        return error.status == 401
    return False


def webhooks(place: Server, admin: Client, bob: Client, receiver: Receiver) -> None:
    from standardwebhooks.webhooks import Webhook, WebhookVerificationError

    for url in (
        "http://169.254.169.254/latest",
        "https://example.org/x",
        "ftp://127.0.0.1/",
        "http://127.0.0.1@evil.example/",
        "x",
    ):
        assert refusal(lambda: bob.create_webhook(url)).status == 422, url  # noqa: B023 - called at once
    hook = bob.create_webhook(receiver.url)
    jobs = [submit(bob, name=f"job{k}") for k in range(3)]
    for job in jobs:
        bob.wait(job)
    taken = receiver.seen
    until(lambda: {job["id"] for _, body in taken[1:] for job in json.loads(body)["data"]["jobs"]} >= set(jobs))
    assert len({headers["webhook-id"] for headers, _ in taken[:2]}) <= 2
    for headers, body in taken:
        told: Any = Webhook(hook["secret"]).verify(body, headers)  # by the specification's own library
        assert told["type"] == "jobs.ended"
        with pytest.raises(WebhookVerificationError):
            Webhook(hook["secret"]).verify(body + b" ", headers)
    ended = [job["id"] for _, body in taken[1:] for job in json.loads(body)["data"]["jobs"]]
    assert sorted(ended) == sorted(jobs)  # each once, after the delivery that was refused
    until(lambda: bob.webhooks()[0]["failures"] == 0)  # written after the receiver has answered
    assert admin.webhooks() == []
    assert refusal(lambda: admin.delete_webhook(hook["id"])).status == 404
    bob.delete_webhook(hook["id"])
    n = len(receiver.seen)
    bob.result(submit(bob))
    time.sleep(1.5)
    assert len(receiver.seen) == n
    assert hook["secret"] not in place.output()


def audit(place: Server, admin: Client, bob: Client) -> None:
    lines = list(admin.audit())
    acts = [line["act"] for line in lines]
    assert {"key.create", "key.rotate", "device.access", "reservation.create", "reservation.cancel", "webhook.create"} <= set(acts)
    numbers = [line["seq"] for line in lines]
    assert numbers == sorted(numbers)
    assert next(iter(admin.audit(numbers[-2]))) == lines[-1]
    http_ = place.http()
    first = http_.get("/v1/audit/export", params={"limit": 2})
    rest = http_.get("/v1/audit/export", params={"limit": 1000, "cursor": first.headers["qpeft-cursor"]})
    assert [json.loads(line) for line in (first.text + rest.text).splitlines()] == lines
    assert (first.headers["qpeft-complete"], rest.headers["qpeft-complete"]) == ("false", "true")
    assert refusal(lambda: list(bob.audit())).status == 403

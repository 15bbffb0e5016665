"""The typed client of API v1, sync and async: `Client` and `AsyncClient`.

Every submission carries an idempotency key and is repeated over broken connections; every call ends in bounded time: a request
after `Retries.request_s`, its repetitions after `Retries.total_s`, waiting for a result after the `timeout_s` of the call.
Refusals are ServiceError, with the service's own words.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

from qpeft.backends.vendors.remote import (
    ENV_CA,
    ENV_KEY,
    ENV_URL,
    POLL_S,
    Attempts,
    Connection,
    Retries,
    sweep_body,
    tls_context,
    to_error,
    unreachable,
)
from qpeft.circuits.ir import Circuit
from qpeft.errors import ServiceError

Json: TypeAlias = dict[str, Any]
Form: TypeAlias = Literal["circuit", "qasm", "originir"]
TERMINAL = ("succeeded", "failed", "cancelled", "expired")
__all__ = ["ENV_KEY", "ENV_URL", "AsyncClient", "Client", "Retries", "job_body"]


def job_body(
    program: Circuit | Mapping[str, Any] | str,
    *,
    device: str,
    form: Form | None = None,
    params: Sequence[float] = (),
    shots: int | None = None,
    seed: int | None = None,
    output: str = "counts",
    observables: Sequence[Any] | None = None,
    name: str = "",
    exclusive: bool = False,
    expires_s: float | None = None,
    priority: str = "normal",
) -> Json:
    """The body of POST /v1/jobs.

    Args:
        program: a circuit, its JSON form, or text.
        device: name of the device.
        form: "circuit", "qasm" or "originir"; default "qasm" for text, else "circuit".
        params: parameters of the circuit `(n_params,)`, radians.
        shots: repetitions; None asks for exact outcomes.
        seed: equal seeds give equal outcomes on simulated devices.
        output: "counts", "probabilities" or "expectations".
        observables: for expectations; default `<Z_k>` for each qubit k.
        name: a name of your own.
        exclusive: share the chip with nobody.
        expires_s: seconds after which a job that still waits ends; None waits for ever.
        priority: "high", "normal" or "low": its place among your own waiting jobs.
    """
    value: Any = program.to_dict() if isinstance(program, Circuit) else program
    chosen = form or ("qasm" if isinstance(program, str) else "circuit")
    body: Json = {
        chosen: value,
        "device": device,
        "params": [float(x) for x in params],
        "shots": shots,
        "seed": seed,
        "output": output,
        "observables": observables,
        "name": name,
        "exclusive": exclusive,
        "expires_s": expires_s,
    }
    return body if priority == "normal" else {**body, "priority": priority}  # a service of an older version knows no priorities


def _sweep(circuit: Circuit, params: npt.ArrayLike, settings: Mapping[str, Any], binary: bool) -> tuple[bytes, str]:
    matrix = np.asarray(params, dtype=np.float64)
    head = {"circuit": circuit.to_dict(), **settings}
    if binary:
        return sweep_body(head, matrix), "application/octet-stream"
    return json.dumps({**head, "params": matrix.tolist()}).encode(), "application/json"


def _events(lines: Sequence[str]) -> tuple[str | None, Json | None]:
    """`(id, data)` of one event's lines."""
    fields = dict(line.split(": ", 1) for line in lines if ": " in line and not line.startswith(":"))
    if fields.get("event") == "closed":
        raise ServiceError("the stream was closed by the service", status=401, code="closed", value=fields.get("data"))
    return fields.get("id"), json.loads(fields["data"]) if "data" in fields else None


def _too_late(what: str, timeout_s: float) -> ServiceError:
    return ServiceError(
        f"{what} did not end in time", status=0, code="timeout", bound=f"{timeout_s:g} s", hint="wait again: it goes on"
    )


class Client:
    """Blocking client; a context manager. `url` and `key` default to QPEFT_SERVICE_URL and QPEFT_SERVICE_KEY."""

    def __init__(self, url: str | None = None, key: str | None = None, *, retries: Retries | None = None) -> None:
        self.connection = Connection(url, key, retries)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.connection.close()

    def _get(self, path: str, params: Mapping[str, Any] | None = None, wait_s: float = 0.0) -> Json:
        found: Json = self.connection.request("GET", path, params=params, wait_s=wait_s).json()
        return found

    def submit(self, program: Circuit | Mapping[str, Any] | str, **settings: Any) -> Json:
        """Submit one circuit; `settings` are those of `job_body`. Returns the job."""
        return self.connection.submit("/v1/jobs", json.dumps(job_body(program, **settings)).encode())

    def submit_batch(self, circuits: Sequence[Mapping[str, Any]], *, device: str, **settings: Any) -> Json:
        """Submit many circuits.

        Args:
            circuits: each `{"circuit" | "qasm" | "originir": ..., "params": [...]}`.
            device: name of the device.
            **settings: settings of `job_body` that hold for all circuits, such as `shots`.

        Returns:
            The batch.

        Raises:
            ServiceError: the service refused, or could not be reached.
        """
        return self.connection.submit("/v1/batches", json.dumps({"device": device, "circuits": circuits, **settings}).encode())

    def submit_sweep(self, circuit: Circuit, params: npt.ArrayLike, *, device: str, binary: bool = True, **settings: Any) -> Json:
        """Submit one circuit with many rows of parameters.

        Args:
            circuit: the circuit.
            params: `(rows, n_params)`, radians.
            device: name of the device.
            binary: send the parameters as float32 instead of JSON.
            **settings: settings of `job_body` that hold for all rows, such as `shots`.

        Returns:
            The batch (`kind: "sweep"`).

        Raises:
            ServiceError: the service refused, or could not be reached.
        """
        body, content_type = _sweep(circuit, params, {"device": device, **settings}, binary)
        return self.connection.submit("/v1/sweeps", body, content_type)

    def job(self, job: str, wait_s: float = 0.0) -> Json:
        """A job; with `wait_s` once it has ended, or after so many seconds."""
        return self._get(f"/v1/jobs/{job}", {"wait": wait_s}, wait_s)

    def jobs(self, *, state: str | None = None, device: str | None = None, limit: int = 100) -> list[Json]:
        """Your jobs, newest first, at most `limit` (1 to 1000).

        Args:
            state: jobs in this state only.
            device: jobs on this device only.
            limit: the most jobs, 1 to 1000.

        Raises:
            ServiceError: the service refused, or could not be reached.
        """
        query = {name: value for name, value in (("state", state), ("device", device), ("limit", limit)) if value is not None}
        found: list[Json] = self._get("/v1/jobs", query)["jobs"]
        return found

    def batches(self, *, before: str | None = None, limit: int = 100) -> list[Json]:
        """Your batches and sweeps, newest first.

        Args:
            before: id of a batch; those made before it only.
            limit: the most batches, 1 to 1000.
        """
        query = {name: value for name, value in (("before", before), ("limit", limit)) if value is not None}
        found: list[Json] = self._get("/v1/batches", query)["batches"]
        return found

    def wait(self, job: str, timeout_s: float = 300.0) -> Json:
        """The job once it has ended.

        Args:
            job: id of the job.
            timeout_s: seconds to wait at most.

        Raises:
            ServiceError: it has not ended in time.
        """
        return self._wait(f"/v1/jobs/{job}", timeout_s)

    def wait_batch(self, batch: str, timeout_s: float = 3600.0) -> Json:
        """The batch once every job of it has ended.

        Args:
            batch: id of the batch.
            timeout_s: seconds to wait at most.

        Raises:
            ServiceError: it has not ended in time.
        """
        return self._wait(f"/v1/batches/{batch}", timeout_s)

    def _wait(self, path: str, timeout_s: float) -> Json:
        deadline = time.monotonic() + timeout_s
        while True:
            wait_s = min(max(deadline - time.monotonic(), 0.0), POLL_S)
            found = self._get(path, {"wait": wait_s}, wait_s)
            if found["state"] in TERMINAL:
                return found
            if time.monotonic() >= deadline:
                raise _too_late(path, timeout_s)

    def result(self, job: str, timeout_s: float = 300.0) -> Json:
        """The result of a job once it is there.

        Args:
            job: id of the job.
            timeout_s: seconds to wait at most.

        Raises:
            ServiceError: the job ended without a result, or not in time.
        """
        self.wait(job, timeout_s)
        return self._get(f"/v1/jobs/{job}/result")

    def results(self, batch: str, timeout_s: float = 3600.0) -> Iterator[Json]:
        """The results of a batch in order, each as soon as it and all before it are there.

        Args:
            batch: id of the batch.
            timeout_s: seconds to wait at most for all of them.

        Yields:
            One result per job.

        Raises:
            ServiceError: the batch has not ended in time.
        """
        deadline, cursor, complete = time.monotonic() + timeout_s, "0", False
        while not complete:
            wait_s = min(max(deadline - time.monotonic(), 0.0), POLL_S)
            query = {"cursor": cursor, "wait": wait_s}
            response = self.connection.request("GET", f"/v1/batches/{batch}/results", params=query, wait_s=wait_s)
            cursor, complete = response.headers["qpeft-cursor"], response.headers["qpeft-complete"] == "true"
            yield from (json.loads(line) for line in response.content.splitlines())
            if not complete and time.monotonic() >= deadline:
                raise _too_late(f"batch {batch}", timeout_s)

    def events(self, after: str | None = None, timeout_s: float = 60.0) -> Iterator[tuple[str, Json]]:
        """`(id, job)` for each change of your jobs, from event `after` on, until none came for `timeout_s` seconds."""
        headers = {"last-event-id": after} if after else {}
        try:
            with self.connection._client.stream("GET", "/v1/events", headers=headers, timeout=timeout_s) as response:
                if response.status_code != 200:
                    raise to_error(response.status_code, response.read(), None)
                yield from _read_events(response.iter_lines(), timeout_s)
        except httpx.TransportError as error:
            raise unreachable(self.connection.url, error) from error

    def cancel(self, job: str) -> Json:
        """Cancel a job; returns it."""
        found: Json = self.connection.request("POST", f"/v1/jobs/{job}/cancel").json()
        return found

    def cancel_batch(self, batch: str) -> Json:
        """Cancel what has not ended of a batch; returns it."""
        found: Json = self.connection.request("POST", f"/v1/batches/{batch}/cancel").json()
        return found

    def delete(self, job: str) -> None:
        """Delete a job that has ended, with its result."""
        self.connection.request("DELETE", f"/v1/jobs/{job}")

    def delete_batch(self, batch: str) -> None:
        """Delete a batch whose jobs have ended, with their results."""
        self.connection.request("DELETE", f"/v1/batches/{batch}")

    def devices(self) -> list[Json]:
        """Every device with its state, limits, queue and workers."""
        found: list[Json] = self._get("/v1/devices")["devices"]
        return found

    def queue(self, device: str) -> Json:
        """How long a device's queue is, and what of it is yours."""
        return self._get(f"/v1/devices/{device}/queue")

    def calibration(self, device: str) -> Json:
        """Current calibration of a device."""
        return self._get(f"/v1/devices/{device}/calibration")

    def usage(self, days: int = 30) -> Json:
        """Jobs, circuits, shots and device seconds by day and device, and what of your bounds is used."""
        return self._get("/v1/usage", {"days": days})

    def create_key(self, user: str, scopes: Sequence[str], *, expires_s: float | None = None, **bounds: float | None) -> Json:
        """Make a key (administrators); the answer's `key` is shown this once.

        Args:
            user: made when there is none of that name.
            scopes: "submit", "read", "admin", "worker".
            expires_s: seconds after which it is refused; None is never.
            bounds: as in `set_user`.
        """
        body = {"user": user, "scopes": list(scopes), "expires_s": expires_s, **bounds}
        found: Json = self.connection.request("POST", "/v1/keys", content=json.dumps(body).encode(), retry=False).json()
        return found

    def users(self) -> list[Json]:
        """Users, their bounds and what they use of them (administrators)."""
        found: list[Json] = self.users_and_defaults()["users"]
        return found

    def users_and_defaults(self) -> Json:
        """`users`, and in `defaults` the service's own bounds, of users without theirs; None is no bound (administrators)."""
        return self._get("/v1/users")

    def set_user(self, user: str, *, disabled: bool | None = None, reset: Sequence[str] = (), **bounds: float | None) -> Json:
        """Change a user (administrators).

        Args:
            user: the user's name.
            disabled: whether the user's keys are refused; None leaves it.
            reset: names of bounds that go back to the service's own.
            bounds: `weight`, `max_open_circuits`, `max_day_circuits`, `max_day_shots`, `max_stored_bytes`, `max_vendor_shots`.
        """
        body = json.dumps({"disabled": disabled, "reset": list(reset), **bounds}).encode()
        found: Json = self.connection.request("POST", f"/v1/users/{quote(user, safe='')}", content=body).json()
        return found

    def link_user(self, user: str, issuer: str, subject: str) -> Json:
        """Let somebody of an OpenID provider sign in as a user (administrators).

        Args:
            user: who is here already.
            issuer: the provider's claim `iss`.
            subject: the claim `sub`.
        """
        body = json.dumps({"issuer": issuer, "subject": subject}).encode()
        found: Json = self.connection.request("POST", f"/v1/users/{quote(user, safe='')}/identity", content=body).json()
        return found

    def keys(self) -> list[Json]:
        """Keys by their prefixes (administrators)."""
        found: list[Json] = self._get("/v1/keys")["keys"]
        return found

    def rotate_key(self, prefix: str, grace_s: float = 86400.0) -> Json:
        """Replace a key of your own, or any (administrators); the answer's `key` is shown this once.

        Args:
            prefix: of the key to replace.
            grace_s: seconds that the old key still works.
        """
        body = json.dumps({"grace_s": grace_s}).encode()
        found: Json = self.connection.request("POST", f"/v1/keys/{prefix}/rotate", content=body, retry=False).json()
        return found

    def my_keys(self) -> list[Json]:
        """Your own keys in use; `current` is the one that asks."""
        found: list[Json] = self._get("/v1/my/keys")["keys"]
        return found

    def set_access(self, device: str, users: Sequence[str] | None) -> Json:
        """Say who may use a device (administrators): these users and no others, or everybody (None)."""
        body = json.dumps({"users": None if users is None else list(users)}).encode()
        found: Json = self.connection.request("POST", f"/v1/devices/{device}/access", content=body).json()
        return found

    def reserve(self, device: str, user: str, duration_s: float, *, starts_in_s: float = 0.0, note: str = "") -> Json:
        """Reserve a device for a user (administrators); others' jobs wait meanwhile.

        Args:
            device: the device.
            user: the user's name.
            duration_s: seconds.
            starts_in_s: seconds from now to its start.
            note: shown to the user and to administrators.
        """
        body = json.dumps({"user": user, "duration_s": duration_s, "starts_in_s": starts_in_s, "note": note}).encode()
        path = f"/v1/devices/{device}/reservations"
        found: Json = self.connection.request("POST", path, content=body, retry=False).json()
        return found

    def reservations(self, device: str | None = None) -> list[Json]:
        """Reservations that run or are to come, of one device or of all."""
        found: list[Json] = self._get("/v1/reservations", {} if device is None else {"device": device})["reservations"]
        return found

    def cancel_reservation(self, reservation: str) -> None:
        """End a reservation (administrators)."""
        self.connection.request("DELETE", f"/v1/reservations/{reservation}", retry=False)

    def create_webhook(self, url: str) -> Json:
        """Have your jobs' ends posted to an address; the answer's `secret` signs them and is shown this once."""
        body = json.dumps({"url": url}).encode()
        found: Json = self.connection.request("POST", "/v1/webhooks", content=body, retry=False).json()
        return found

    def webhooks(self) -> list[Json]:
        """Your webhooks, with what went wrong last."""
        found: list[Json] = self._get("/v1/webhooks")["webhooks"]
        return found

    def delete_webhook(self, webhook: str) -> None:
        """Forget a webhook."""
        self.connection.request("DELETE", f"/v1/webhooks/{webhook}", retry=False)

    def audit(self, after: int = 0) -> Iterator[Json]:
        """The audit log after entry number `after`, the oldest first (administrators)."""
        complete = False
        while not complete:
            response = self.connection.request("GET", "/v1/audit/export", params={"cursor": after, "limit": 1000})
            after, complete = int(response.headers["qpeft-cursor"]), response.headers["qpeft-complete"] == "true"
            yield from (json.loads(line) for line in response.content.splitlines())

    def revoke_key(self, prefix: str) -> None:
        """Refuse a key from now on (administrators)."""
        self.connection.request("DELETE", f"/v1/keys/{prefix}", retry=False)

    def vendor_tasks(self, state: str | None = None, limit: int = 100) -> list[Json]:
        """Tasks sent to vendors, newest first. State "intent": it is unknown whether the task arrived.

        Args:
            state: tasks in this state only.
            limit: the most tasks, 1 to 1000.

        Raises:
            ServiceError: the service refused, or could not be reached.
        """
        query = {"limit": limit} if state is None else {"limit": limit, "state": state}
        found: list[Json] = self._get("/v1/vendor-tasks", query)["tasks"]
        return found

    def resolve_vendor_task(self, task: str, vendor_job: str | None) -> Json:
        """Say what became of a task in the state "intent".

        Args:
            task: id of the task.
            vendor_job: the vendor's id of it; None when it never arrived and may be sent again.

        Raises:
            ServiceError: no such task, or one in another state.
        """
        body = json.dumps({"vendor_job": vendor_job}).encode()
        found: Json = self.connection.request("POST", f"/v1/vendor-tasks/{task}/resolve", content=body).json()
        return found

    def set_calibration(self, device: str, calibration: str | Mapping[str, Any]) -> Json:
        """Run a chip under a calibration from now on (administrators).

        Args:
            device: name of the device.
            calibration: a chip file's content, or the id of a calibration that it had before.
        """
        body = {"id": calibration} if isinstance(calibration, str) else {"chip": calibration}
        found: Json = self.connection.request("POST", f"/v1/devices/{device}/calibration", content=json.dumps(body).encode()).json()
        return found

    def set_device(self, device: str, status: str, reason: str = "") -> Json:
        """Set the status of a device (administrators).

        Args:
            device: name of the device.
            status: "online" takes and runs jobs; "draining" runs what is queued and takes nothing; "maintenance" takes jobs and
                runs nothing.
            reason: shown to users.

        Raises:
            ServiceError: no such device.
        """
        body = json.dumps({"status": status, "reason": reason}).encode()
        found: Json = self.connection.request("POST", f"/v1/devices/{device}/status", content=body).json()
        return found


def _read_events(lines: Iterator[str], timeout_s: float) -> Iterator[tuple[str, Json]]:
    gathered: list[str] = []
    spoke = time.monotonic()
    for line in lines:
        if line:
            gathered.append(line)
            continue
        name, data = _events(gathered)
        gathered = []
        if name is not None and data is not None:
            spoke = time.monotonic()
            yield name, data
        elif time.monotonic() - spoke > timeout_s:
            return


class AsyncClient:
    """The same for coroutines: submitting, waiting, results, cancelling and events."""

    def __init__(self, url: str | None = None, key: str | None = None, *, retries: Retries | None = None) -> None:
        checked = Connection(url, key, retries)
        headers = dict(checked._client.headers)
        checked.close()
        self.url, self.retries = checked.url, checked.retries
        verify = tls_context(os.environ.get(ENV_CA), None) if self.url.startswith("https:") else True
        self._client = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=self.retries.request_s, verify=verify)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def request(self, method: str, path: str, *, wait_s: float = 0.0, **sent: Any) -> httpx.Response:
        """Send a request as `Connection.request` does.

        Args:
            method: HTTP method.
            path: path below the service's address.
            wait_s: seconds that the service may hold the answer; added to the time-out.
            **sent: further arguments of `httpx.AsyncClient.request`.

        Raises:
            ServiceError: the service refused, or could not be reached in time.
        """
        attempts, timeout = Attempts(self.url, self.retries, wait_s), self.retries.request_s + wait_s
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._client.request(method, path, timeout=timeout, **sent)
            except httpx.TransportError as error:
                outcome = error
            delay = attempts.settle(outcome)
            if delay is None:
                assert isinstance(outcome, httpx.Response)
                return outcome
            await asyncio.sleep(delay)

    async def _submit(self, path: str, content: bytes, content_type: str = "application/json") -> Json:
        headers = {"content-type": content_type, "idempotency-key": secrets.token_hex(16)}
        found: Json = (await self.request("POST", path, content=content, headers=headers)).json()
        return found

    async def submit(self, program: Circuit | Mapping[str, Any] | str, **settings: Any) -> Json:
        """See `Client.submit`."""
        return await self._submit("/v1/jobs", json.dumps(job_body(program, **settings)).encode())

    async def submit_batch(self, circuits: Sequence[Mapping[str, Any]], *, device: str, **settings: Any) -> Json:
        """See `Client.submit_batch`."""
        return await self._submit("/v1/batches", json.dumps({"device": device, "circuits": circuits, **settings}).encode())

    async def submit_sweep(
        self, circuit: Circuit, params: npt.ArrayLike, *, device: str, binary: bool = True, **settings: Any
    ) -> Json:
        """See `Client.submit_sweep`."""
        return await self._submit("/v1/sweeps", *_sweep(circuit, params, {"device": device, **settings}, binary))

    async def wait(self, job: str, timeout_s: float = 300.0) -> Json:
        """See `Client.wait`."""
        deadline = time.monotonic() + timeout_s
        while True:
            wait_s = min(max(deadline - time.monotonic(), 0.0), POLL_S)
            found: Json = (await self.request("GET", f"/v1/jobs/{job}", params={"wait": wait_s}, wait_s=wait_s)).json()
            if found["state"] in TERMINAL:
                return found
            if time.monotonic() >= deadline:
                raise _too_late(f"job {job}", timeout_s)

    async def result(self, job: str, timeout_s: float = 300.0) -> Json:
        """See `Client.result`."""
        await self.wait(job, timeout_s)
        found: Json = (await self.request("GET", f"/v1/jobs/{job}/result")).json()
        return found

    async def results(self, batch: str, timeout_s: float = 3600.0) -> AsyncIterator[Json]:
        """See `Client.results`."""
        deadline, cursor, complete = time.monotonic() + timeout_s, "0", False
        while not complete:
            wait_s = min(max(deadline - time.monotonic(), 0.0), POLL_S)
            query = {"cursor": cursor, "wait": wait_s}
            response = await self.request("GET", f"/v1/batches/{batch}/results", params=query, wait_s=wait_s)
            cursor, complete = response.headers["qpeft-cursor"], response.headers["qpeft-complete"] == "true"
            for line in response.content.splitlines():
                yield json.loads(line)
            if not complete and time.monotonic() >= deadline:
                raise _too_late(f"batch {batch}", timeout_s)

    async def cancel(self, job: str) -> Json:
        """As Client.cancel."""
        found: Json = (await self.request("POST", f"/v1/jobs/{job}/cancel")).json()
        return found

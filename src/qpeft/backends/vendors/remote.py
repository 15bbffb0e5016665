"""`remote:URL`: a device of a qpeft service as a backend, and the connection that the service's own client shares.

The protocol is API v1 of qpeft.service (docs/service.md). It lives here because backends may not import the service. Every
submission carries an idempotency key, so sending it again after a broken connection neither loses nor doubles work, and every
call has a time-out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import secrets
import ssl
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from qpeft.backends.base import Backend, CompiledCircuit, Counts, FloatArray, Limits, check_circuit, check_run
from qpeft.backends.spending.budget import Budget
from qpeft.backends.spending.paid import JournalFile, PaidDevice, open_journal
from qpeft.backends.spending.submission import JobStatus, KeyRefusedError, NotSentError, VendorClient
from qpeft.circuits.ir import Circuit
from qpeft.errors import BackendError, MissingDependencyError, QpeftError, ServiceError

log = logging.getLogger("qpeft.service.client")
RETRIED = (408, 425, 429, 500, 502, 503, 504)
ENV_URL, ENV_KEY, ENV_CA = "QPEFT_SERVICE_URL", "QPEFT_SERVICE_KEY", "QPEFT_SERVICE_CA"
POLL_S = 20.0


@dataclass(frozen=True)
class Retries:
    """How long to try: `request_s` for one request, `total_s` for it and its repetitions."""

    request_s: float = 30.0
    total_s: float = 120.0

    def delay(self, attempt: int, retry_after: str | None) -> float:
        """Seconds before the next try: what the service asked for, else 0.1 s doubled each time up to 5 s; with jitter.

        Args:
            attempt: failed tries so far, from 0.
            retry_after: the response's `Retry-After` header; only whole seconds are read.
        """
        asked = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
        return max(asked, min(0.1 * 2.0**attempt, 5.0)) * random.uniform(0.75, 1.25)


class Attempts:
    """Retry policy of requests, shared by the blocking and the asynchronous client."""

    def __init__(self, url: str, retries: Retries, wait_s: float = 0.0, retry: bool = True) -> None:
        self.url, self.retries, self.retry = url, retries, retry
        self.deadline = time.monotonic() + retries.total_s + wait_s
        self.count = 0

    def settle(self, outcome: Any) -> float | None:
        """None when `outcome`, a response or the transport's error, is an answer, else seconds to the next try; or ServiceError."""
        retry_after = None
        if isinstance(outcome, Exception):
            failure = unreachable(self.url, outcome)
        elif outcome.status_code < 400:
            return None
        else:
            retry_after = outcome.headers.get("retry-after")
            failure = to_error(outcome.status_code, outcome.content, retry_after)
            if outcome.status_code not in RETRIED:
                raise failure
        delay = self.retries.delay(self.count, retry_after)
        if not self.retry or time.monotonic() + delay > self.deadline:
            raise failure
        self.count += 1
        if failure.status == 429:
            log.warning("%s; trying again in %.2g s", failure, delay)
        elif failure.status == 0 and self.count == 1:
            log.warning("%s; trying again for %.0f s", failure, self.deadline - time.monotonic())
        return delay


def to_error(status: int, body: bytes, retry_after: str | None) -> ServiceError:
    """The error for a refusal, in the service's own words.

    Args:
        status: HTTP status.
        body: the response, JSON with `detail` and `code` (RFC 9457) or any text.
        retry_after: the response's `Retry-After` header.
    """
    try:
        problem = json.loads(body)
        detail, code = str(problem["detail"]), str(problem.get("code", "http"))
    except (ValueError, KeyError, TypeError):
        detail, code = body[:200].decode(errors="replace") or f"HTTP status {status}", "http"
    wait = float(retry_after) if retry_after and retry_after.isdigit() else None
    return ServiceError(detail, status=status, code=code, retry_after_s=wait)


def unreachable(url: str, error: Exception) -> ServiceError:
    """The ServiceError (status 0, code `unreachable`) for a transport error at `url`; returned, not raised."""
    what = f"the service at {url} does not answer ({type(error).__name__})"
    return ServiceError(what, status=0, code="unreachable", hint="check the address and that the service runs")


def tls_context(ca: str | None, pinned_cert: str | None) -> Any:
    """TLS context that verifies the server's certificate.

    Args:
        ca: file of authorities; default the system's.
        pinned_cert: file of the one certificate that is trusted; `ca` is ignored then.
    """
    if pinned_cert is not None:
        context = ssl.create_default_context(cafile=pinned_cert)
        context.check_hostname = False  # the certificate itself is known, whatever name it has
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context
    return ssl.create_default_context(cafile=ca) if ca else True


class Connection:
    """HTTP with retries. `key` never appears in messages or `repr`.

    Args:
        url: the service's address, by default QPEFT_SERVICE_URL.
        key: by default QPEFT_SERVICE_KEY.
        retries: how long to try.
        pinned_cert: file of the service's own certificate. Nothing else is trusted, and the file is read again when a connection
            fails, since the certificate may have been renewed. Without it the system's authorities are trusted, or those in the
            file that QPEFT_SERVICE_CA names.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, retries: Retries | None = None, pinned_cert: str | None = None
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingDependencyError("httpx", "service", "talking to a qpeft service") from error
        url, key = url or os.environ.get(ENV_URL), key or os.environ.get(ENV_KEY)
        if not url or not key:
            raise ServiceError(
                "no service to talk to", status=0, code="no_service", hint=f"give url and key, or set {ENV_URL} and {ENV_KEY}"
            )
        if not url.startswith(("http://", "https://")):
            raise ServiceError("not a service's address", status=0, code="no_service", value=url, bound="http://... or https://...")
        self.url, self.retries = url.rstrip("/"), retries or Retries()
        self._httpx, self._key, self._pinned_cert = httpx, key, pinned_cert
        self._client = self._open()

    def _open(self) -> Any:
        verify = tls_context(os.environ.get(ENV_CA), self._pinned_cert) if self.url.startswith("https:") else True
        headers = {"authorization": f"Bearer {self._key}"}
        return self._httpx.Client(base_url=self.url, headers=headers, timeout=self.retries.request_s, verify=verify)

    def __repr__(self) -> str:
        return f"Connection({self.url!r})"

    def close(self) -> None:
        """Close the HTTP client and its connections."""
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        wait_s: float = 0.0,
        retry: bool = True,
    ) -> Any:
        """Send a request, again on broken connections and on statuses that pass.

        Args:
            method: HTTP method.
            path: path below the service's address.
            content: body.
            content_type: media type of the body.
            headers: further headers.
            params: query parameters.
            wait_s: seconds that the service may hold the answer; added to the time-out.
            retry: False sends once.

        Returns:
            `httpx.Response` of a status below 400.

        Raises:
            ServiceError: the service refused, or could not be reached in time.
        """
        sent = dict(headers or {})
        if content is not None:
            sent["content-type"] = content_type
        attempts, timeout = Attempts(self.url, self.retries, wait_s, retry), self.retries.request_s + wait_s
        outcome: Any
        while True:
            try:
                outcome = self._client.request(method, path, content=content, headers=sent, params=params, timeout=timeout)
            except self._httpx.TransportError as error:
                outcome = error
                if self._pinned_cert is not None:
                    self._client.close()
                    self._client = self._open()
            delay = attempts.settle(outcome)
            if delay is None:
                return outcome
            time.sleep(delay)

    def submit(self, path: str, content: bytes, content_type: str = "application/json", key: str | None = None) -> dict[str, Any]:
        """POST with an idempotency key, so that it may be sent again.

        Args:
            path: path below the service's address.
            content: body.
            content_type: media type of the body.
            key: idempotency key; default a fresh one.

        Returns:
            The response's JSON object.

        Raises:
            ServiceError: see `request`.
        """
        headers = {"idempotency-key": key or secrets.token_hex(16)}
        found: dict[str, Any] = self.request("POST", path, content=content, content_type=content_type, headers=headers).json()
        return found


def sweep_body(head: Mapping[str, Any], params: FloatArray) -> bytes:
    """A binary sweep: length of the head, head, float32 matrix.

    Args:
        head: fields of the request, fit for JSON.
        params: `(rows, n_params)`, radians; sent as float32.
    """
    text = json.dumps({**head, "rows": len(params)}).encode()
    return struct.pack("<I", len(text)) + text + np.ascontiguousarray(params, dtype="<f4").tobytes()


class RemoteBackend(Backend):
    """A device behind a service. `address` is `http(s)://HOST:PORT/?device=NAME` (default device `simulator`).

    The key comes from `key` or the environment variable QPEFT_SERVICE_KEY. Runs wait for their results up to `timeout_s`.
    Parameters travel in float64, so that exact results stay exact.

    With a `journal`, runs on a device that is no simulator are found again after a crash of this process instead of being paid
    twice (the service recognises a repeated submission for some days), and `budget` holds over all sessions.
    """

    def __init__(
        self,
        address: str,
        *,
        key: str | None = None,
        device: str | None = None,
        timeout_s: float = 3600.0,
        journal: JournalFile | None = None,
        budget: Budget | None = None,
    ) -> None:
        parts = urlsplit(address)
        self.device = device or (parse_qs(parts.query).get("device") or ["simulator"])[0]
        self.connection = Connection(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", key)
        self.timeout_s = timeout_s
        self.name = f"remote:{self.connection.url}?device={self.device}"
        try:
            found = self._described()
        except QpeftError:
            self.close()
            raise
        self.limits = Limits(found["max_qubits"], found["max_shots"], exact=bool(found["exact"]))
        self.simulated = bool(found["simulated"])
        self.calibration = str(found["calibration"])
        self.program_s, self.shot_s = float(found.get("program_s") or 0.0), float(found.get("shot_s") or 0.0)
        self.paid: PaidDevice | None = None
        if journal is not None and not self.simulated:
            self.journal = open_journal(self.name, journal)
            client = ServiceClient(self.connection)
            seconds, rows = self.estimate, CompiledRemote.ROWS
            self.paid = PaidDevice(client, self.journal, budget, per_job=rows, seconds=seconds, timeout_s=timeout_s)

    def _described(self) -> dict[str, Any]:
        found: dict[str, Any] = self.connection.request("GET", f"/v1/devices/{self.device}").json()
        if found["max_qubits"] is None:
            raise BackendError(f"no worker of {self.device} has told its limits yet", hint="start a worker: qpeft worker")
        return found

    def begin(self, sample: str) -> None:
        """See `Backend.begin`. Does nothing where runs are not kept in a journal."""
        if self.paid is not None:
            self.paid.sample = sample

    def close(self) -> None:
        """Close the connection to the service, and the journal if there is one."""
        self.connection.close()
        if self.journal is not None:
            self.journal.close()

    def compile(self, circuit: Circuit) -> CompiledRemote:
        """See `Backend.compile`; nothing is sent yet. Raises BackendError for more qubits than the device takes."""
        check_circuit(self.name, self.limits, circuit)
        return CompiledRemote(self, circuit)

    def estimate(self, programs: int, shots: int) -> float:
        """See `Backend.estimate`: by the service's own model of what the device takes; 0 where that is a simulator."""
        return 0.0 if self.simulated else programs * (self.program_s + shots * self.shot_s)


class CompiledRemote(CompiledCircuit):
    """A circuit that runs as sweeps."""

    ROWS = 10_000  # of one sweep

    def __init__(self, backend: RemoteBackend, circuit: Circuit) -> None:
        self.backend, self.circuit = backend, circuit

    def run(self, params: FloatArray, shots: int | None, seed: int | None = None) -> Counts:
        """See `CompiledCircuit.run`: sweeps of at most `ROWS` rows each, waited for up to `timeout_s` of the backend.

        The sweep that starts at row i has the seed `seed + i` (modulo 2^63). Runs kept in a journal ignore `seed`.

        Raises:
            ServiceError: the service cannot be reached or refuses the request.
            BackendError: a job did not succeed, or the results did not arrive in time.
            BudgetError, JobError: runs kept in a journal; see `PaidDevice.run`.
        """
        rows = check_run(self.backend.name, self.backend.limits, self.circuit, params, shots)
        n = self.circuit.n_qubits
        if self.backend.paid is not None:
            head = {"device": self.backend.device, "circuit": self.circuit.to_dict()}
            found = self.backend.paid.run(head, rows.tolist(), shots)
        else:
            starts = range(0, len(rows), self.ROWS)
            found = [row for i in starts for row in self._sweep(rows[i : i + self.ROWS], shots, seed, i)]
        if shots is None:
            return Counts.dense(np.array(found, dtype=np.float64).reshape(len(rows), 2**n), None)
        return Counts.from_strings(n, found, shots)

    def _sweep(self, rows: FloatArray, shots: int | None, seed: int | None, first: int) -> list[Any]:
        """Result of each row: probabilities, or counts by bit string."""
        chosen = None if seed is None else (seed + first) % 2**63
        content = sweep_request(self.backend.device, self.circuit.to_dict(), rows.tolist(), shots, chosen)
        connection = self.backend.connection
        batch = connection.submit("/v1/sweeps", content)
        return outcomes(fetch_lines(connection, batch["id"], self.backend.timeout_s))


def sweep_request(device: str, circuit: Any, rows: list[list[float]], shots: int | None, seed: int | None = None) -> bytes:
    """Body of a request for a sweep, in JSON.

    Args:
        device: name of the device.
        circuit: `Circuit.to_dict()`.
        rows: parameters of each circuit, radians, float64.
        shots: repetitions of each row; None asks for exact probabilities.
        seed: equal seeds give equal outcomes on simulated devices.
    """
    output = "probabilities" if shots is None else "counts"
    body = {"device": device, "circuit": circuit, "params": rows, "shots": shots, "seed": seed, "output": output}
    return json.dumps(body).encode()


def outcomes(lines: list[dict[str, Any]]) -> list[Any]:
    """The outcomes of every row of a batch's lines."""
    return [row for line in lines for row in line["probabilities" if "probabilities" in line else "counts"]]


class ServiceClient(VendorClient):
    """A service's device as a vendor's client. The service answers a repeated submission with the batch it has."""

    idempotent = True

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.lines: dict[str, list[dict[str, Any]]] = {}

    def submit(self, payload: Any, tag: str) -> str:
        """See `VendorClient.submit`. Returns the batch id; the idempotency key is a hash of the address, `tag` and the sample.

        Raises:
            KeyRefusedError: status 401 or 403.
            NotSentError: another status from 400 to 499 that is not in `RETRIED`.
            ServiceError: any other failure; it is not known whether the service has the sweep.
        """
        content = sweep_request(payload["device"], payload["circuit"], payload["programs"], payload["shots"])
        key = hashlib.sha256(f"{self.connection.url}|{tag}|{payload.get('sample', '')}".encode()).hexdigest()
        try:
            return str(self.connection.submit("/v1/sweeps", content, key=key)["id"])
        except ServiceError as error:
            if error.status in (401, 403):
                raise KeyRefusedError(str(error)) from error
            if 400 <= error.status < 500 and error.status not in RETRIED:
                raise NotSentError(str(error)) from error
            raise

    def poll(self, job: str) -> JobStatus:
        """See `VendorClient.poll`. Waits at the service for up to `POLL_S` seconds for further results of the batch.

        A finished job's result has one entry per row: probabilities, or counts by bit string with qubit 0 leftmost.
        """
        known = self.lines.setdefault(job, [])
        fresh, complete = read_lines(self.connection, job, len(known), POLL_S)
        known += fresh
        for line in known:
            if line["state"] != "succeeded":
                return JobStatus("failed", f"job {line['id']} {line['state']}: {line['reason']}")
        if not complete:
            return JobStatus("running")
        return JobStatus("done", result=outcomes(self.lines.pop(job)))

    def cancel(self, job: str) -> bool:
        """See `VendorClient.cancel`. Always True; raises ServiceError where the request fails."""
        self.connection.request("POST", f"/v1/batches/{job}/cancel")
        return True


def read_lines(connection: Connection, batch: str, start: int, wait_s: float) -> tuple[list[dict[str, Any]], bool]:
    """Results of a batch's jobs that are there.

    Args:
        connection: to the service.
        batch: id of the batch.
        start: index of the first job.
        wait_s: seconds to wait for a result.

    Returns:
        The results in order, and whether these are the last.
    """
    query = {"cursor": start, "wait": wait_s}
    response = connection.request("GET", f"/v1/batches/{batch}/results", params=query, wait_s=wait_s)
    return [json.loads(line) for line in response.content.splitlines()], response.headers["qpeft-complete"] == "true"


def fetch_lines(connection: Connection, batch: str, timeout_s: float) -> list[dict[str, Any]]:
    """Wait for the results of all jobs of a batch.

    Args:
        connection: to the service.
        batch: id of the batch.
        timeout_s: seconds to wait at most.

    Returns:
        One result per job, in order.

    Raises:
        BackendError: a job did not succeed, or the results did not arrive in time.
        ServiceError: the service refused, or could not be reached.
    """
    deadline = time.monotonic() + timeout_s
    lines: list[dict[str, Any]] = []
    complete = False
    while not complete:
        fresh, complete = read_lines(connection, batch, len(lines), min(POLL_S, max(deadline - time.monotonic(), 0.0)))
        for line in fresh:
            if line["state"] != "succeeded":
                raise BackendError(f"job {line['id']} {line['state']}: {line['reason']}")
        lines += fresh
        if not complete and time.monotonic() >= deadline:
            raise BackendError(
                "the service did not finish in time", value=batch, bound=f"{timeout_s:g} s", hint="read the batch later by its id"
            )
    return lines

"""pyqpanda3's cloud client in a process of its own, and the way to talk to it.

The SDK keeps one connection for a whole process, holds Python's interpreter lock while it waits (up to three minutes when a
server is silent) and prints to standard output. In a process of its own it can be timed out, and two accounts can be used at once.
Requests and replies are JSON, a line each; the key goes over the pipe, not through the command line or the environment.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from qpeft.backends.spending.submission import (
    JobStatus,
    KeyRefusedError,
    NotSentError,
    UnreadableAnswerError,
    VendorClient,
)
from qpeft.backends.vendors.keys import Secret
from qpeft.errors import MissingDependencyError

_STATES = {"FINISHED": "done", "FAILED": "failed", "COMPUTING": "running"}  # others wait

# The errors of a submission that are known to mean that nothing was taken: no connection was made, or HTTP refused the request. The
# SDK hands on a vendor's own words without a code, whatever they are, so that only messages that begin as the SDK's own do are
# believed. Any other error leaves open whether the job was taken (408, 409, 425 and 499 do as well: they speak of a request that is
# already there, or that was cut off).
_NEVER_SENT = re.compile(
    r"^curl_easy_perform failed: (?:Failed to connect to \S+ port \d+ |Could(?: not|n't) (?:connect to server|resolve host))"
    r"|^QCloud HTTP request failed with status 4(?!08|09|25|99)\d\d: "
)
_NO_ANSWER = re.compile(r"^curl_easy_perform failed: |^QCloud HTTP request failed with status ")
_KEY_REFUSED = re.compile(r"^QCloud HTTP request failed with status 40[13]\b")


def sdk(module: str) -> Any:
    """A module of pyqpanda3, whose type stubs lack most of what it has."""
    return importlib.import_module(f"pyqpanda3.{module}")


class SdkClient(VendorClient):
    """Calls of the SDK, each within `timeout_s` (its process is ended if not); see `VendorClient`."""

    def __init__(self, key: Secret, url: str | None, timeout_s: float = 60.0) -> None:
        self._key, self.url, self.timeout_s = key, url, timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def backends(self) -> dict[str, bool]:
        """Names of chips and simulators, and whether each is online."""
        return dict(self._call("backends"))

    def chip_info(self, chip: str) -> dict[str, Any]:
        """A chip's calibration in the vendor's own form (the `obj` of its chipInfo reply), as far as the SDK hands it out."""
        return dict(self._call("chip_info", chip=chip))

    def submit(self, payload: Any, tag: str) -> str:
        """See `VendorClient.submit`. The tag is the vendor's batch number, which the vendor's own pages show."""
        sent = {name: value for name, value in payload.items() if name != "sample"}  # which is the journal's
        return str(self._call("submit", **sent, tag=tag))

    def poll(self, job: str) -> JobStatus:
        """See `VendorClient.poll`. The result of a finished job holds lists `counts` and `probabilities`, qubit 0 rightmost.

        Raises:
            KeyRefusedError: the vendor does not take the key.
            UnreadableAnswerError: the SDK cannot read the vendor's answer.
            ConnectionError: the SDK failed, or gave no answer within `timeout_s`.
        """
        state, detail, result = self._call("poll", job=job)
        return JobStatus(_STATES.get(state, "waiting"), detail, result)  # type: ignore[arg-type]

    def cancel(self, job: str) -> bool:
        """See `VendorClient.cancel`. Raises the errors of `poll`."""
        return bool(self._call("cancel", job=job))

    def close(self) -> None:
        """End the SDK's process. The next call starts a new one; closing twice is allowed."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def __del__(self) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        self._process = process
        return process

    def _call(self, name: str, **arguments: Any) -> Any:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
            self._exchange({"call": "connect", "key": self._key.reveal(), "url": self.url})
        return self._exchange({"call": name, **arguments})

    def _exchange(self, request: dict[str, Any]) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            reply = json.loads(self._read_line(process.stdout.fileno()))
        except (OSError, ValueError) as error:
            self.close()
            raise ConnectionError(f"pyqpanda3 ended or gave no answer in {self.timeout_s:g} s") from error
        except BaseException:  # an interrupt: the answer to this request must not be taken for the next one's
            self.close()
            raise
        if "missing" in reply:
            raise MissingDependencyError("pyqpanda3", "pyqpanda", "Origin Quantum's cloud")
        if "error" not in reply:
            return reply["value"]
        message = self._key.censor(reply["error"])
        if _KEY_REFUSED.search(message):
            raise KeyRefusedError("status 401: unauthorised")
        if request["call"] == "submit" and (reply.get("unsent") or _NEVER_SENT.search(message)):
            raise NotSentError(message)
        raise ConnectionError(message) if _NO_ANSWER.search(message) else UnreadableAnswerError(message)

    def _read_line(self, descriptor: int) -> bytes:
        deadline, data = time.monotonic() + self.timeout_s, b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not data.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                piece = os.read(descriptor, 1 << 20)
                if not piece:
                    raise ConnectionError("the process ended")
                data += piece
        return data


class _UnsentError(Exception):
    """A submission that ended before anything left this machine."""


class _Worker:
    """The other side: pyqpanda3 itself."""

    def connect(self, key: str, url: str | None) -> None:
        self.qcloud = sdk("qcloud")
        self.service = self.qcloud.QCloudService(key) if url is None else self.qcloud.QCloudService(key, url=url)

    def backends(self) -> dict[str, bool]:
        return dict(self.service.backends())

    def chip_info(self, chip: str) -> dict[str, Any]:
        info = self.service.backend(chip).chip_info()
        adjacency: dict[str, list[dict[str, Any]]] = {}
        for pair in info.double_qubits_info():
            a, b = (int(q) for q in pair.get_qubits())
            for one, other in ((a, b), (b, a)):
                edges = adjacency.setdefault(str(one), [])
                if other not in [edge["v"] for edge in edges]:
                    edges.append({"v": other, "w": pair.get_fidelity()})
        return {
            "ChipID": info.chip_id(),
            "QubitCount": info.qubits_num(),
            "adjMatrix": adjacency,
            "QubitParams": [
                {
                    "qubitId": str(q.get_qubit_id()),
                    "T1": q.get_t1(),
                    "T2": q.get_t2(),
                    "frequency": q.get_frequency(),
                    "ReadoutFidelity": q.get_readout_fidelity(),
                    "SingleGateFidelity": q.get_single_gate_fidelity(),
                }
                for q in info.single_qubit_info()
            ],
            "AvailableQubits": list(info.available_qubits()),
            "HighFrequencyQubit": list(info.high_frequency_qubits()),
            "BasicQGate": list(info.get_basic_gates()),
            "CompensateAngle": {},
            "QGateClock": [
                {"gateType": "RPhi", "IntValue": info.get_single_gate_timing()},
                {"gateType": "CZ", "IntValue": info.get_double_gate_timing()},
            ],
        }

    def submit(
        self,
        chip: str,
        programs: list[str],
        shots: int,
        amend: bool,
        mapping: bool,
        optimization: bool,
        block: list[int],
        tag: str = "",
    ) -> str:
        options = self.qcloud.QCloudOptions(int(amend), mapping=mapping, optimization=optimization, specified_block=block)
        read = sdk("intermediate_compiler").convert_originir_string_to_qprog
        try:
            progs = [read(text) for text in programs]
            backend = self.service.backend(chip)
        except Exception as error:
            raise _UnsentError(str(error)) from error
        return str(backend.run(progs, shots, options, batch_id=tag).job_id())

    def poll(self, job: str) -> tuple[str, str, Any]:
        result = self.qcloud.QCloudJob(job).query()
        state = result.job_status().name
        if state != "FINISHED":
            return state, result.error_message(), None
        return state, "", {"counts": result.get_counts_list(), "probabilities": result.get_probs_list()}

    def cancel(self, job: str) -> bool:
        return bool(self.qcloud.QCloudJob(job).cancel())


def main() -> None:
    """Serve requests from standard input until it ends. Output of the SDK is discarded."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = _Worker()
    for line in sys.stdin:
        request = json.loads(line)
        call: Callable[..., Any] = getattr(worker, request.pop("call"))
        try:
            reply = {"value": call(**request)}
        except ImportError:
            reply = {"missing": True}
        except Exception as error:
            reply = {"error": str(error), "unsent": isinstance(error, _UnsentError)}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()

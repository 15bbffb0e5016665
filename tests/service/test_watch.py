"""`qpeft jobs --watch`, on a terminal and in a pipe."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pty
import select
import signal
import subprocess
import time

import pytest

from qpeft.circuits.ir import Circuit, Op
from qpeft.cli.watch import watch_jobs
from tests.service.processes import CLI, Server

BELL = Circuit(2, (Op("h", (0,)), Op("cx", (0, 1))))


def test_a_pipe_gets_a_line_for_each_change(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    client = server.client(server.new_key("wanda"))
    job = client.submit(BELL, device="simulator", shots=5, name="[bold]seen[/bold]")
    client.result(job["id"])
    watch_jobs(client, None, 20, as_json=True, rounds=2)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["state"] == "succeeded"
    watch_jobs(client, None, 20, as_json=False, rounds=1)
    assert capsys.readouterr().out == f"{job['id']} succeeded simulator [bold]seen[/bold]\n"


def test_a_terminal_shows_the_queue_in_place(server: Server) -> None:
    key = server.new_key("wilma")
    client = server.client(key)
    with server.client() as admin:
        admin.set_device("simulator", "maintenance")
        try:
            client.submit(BELL, device="simulator", shots=5, name="first")
            client.submit(BELL, device="simulator", shots=5, name="second [red]")
            ours, theirs = pty.openpty()
            environment = {**os.environ, "QPEFT_SERVICE_KEY": key, "COLUMNS": "160", "LINES": "40", "TERM": "xterm"}
            command = [*CLI, "jobs", "--watch", "--url", server.url]
            heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores it
            with subprocess.Popen(
                command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, preexec_fn=heeds
            ) as process:
                os.close(theirs)
                text, deadline, interrupted = b"", time.monotonic() + 60, False
                while process.poll() is None and time.monotonic() < deadline:  # who writes to an unread terminal waits
                    if select.select([ours], [], [], 0.2)[0]:
                        with contextlib.suppress(OSError):  # Linux: the other end is closed
                            text += os.read(ours, 65536)
                    if b"second [red]" in text and not interrupted:
                        process.send_signal(signal.SIGINT)
                        interrupted = True
                process.kill()
            os.close(ours)
            assert process.returncode == 130
        finally:
            admin.set_device("simulator", "online")
    shown = text.decode()
    assert "first" in shown
    assert "simulator: maintenance, 2 queued" in shown
    assert "second [red]" in shown

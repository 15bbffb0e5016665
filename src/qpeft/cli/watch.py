"""`qpeft jobs --watch`: the queue on the terminal, in place, until it is interrupted."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from qpeft.errors import ServiceError
from qpeft.service.client import Client

EVERY_S = 1.0
COLUMNS = ("id", "name", "state", "device", "circuits", "shots", "before", "expected start", "created")
STYLES = {"queued": "dim", "running": "cyan", "succeeded": "green", "failed": "red", "cancelled": "yellow", "expired": "yellow"}


def watch_jobs(client: Client, state: str | None, limit: int, *, as_json: bool, rounds: int | None = None) -> None:
    """Show devices and jobs again and again; where nobody watches (a pipe, `--json`), a line for each change instead.

    The service may be away for a while: that is shown, and the watch goes on. `rounds` bounds the looks, for tests.
    """

    def look() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        shown = client.jobs(state=state, limit=limit)
        waiting = [job["id"] for job in shown if job["state"] == "queued"][:limit]
        queued = {name: client.job(name) for name in waiting}  # with position and expected start
        return client.devices(), [queued.get(job["id"], job) for job in shown]

    if as_json or not sys.stdout.isatty():
        _lines(look, as_json, rounds)
    else:
        _table(look, rounds)


def _lines(look: Callable[[], Any], as_json: bool, rounds: int | None) -> None:
    """A line for each job that is new or changed its state."""
    seen: dict[str, str] = {}
    n = 0
    while rounds is None or n < rounds:
        n += 1
        try:
            _, found = look()
        except ServiceError as error:
            if error.status in (401, 403):
                raise
            print(f"the service does not answer: {error}", file=sys.stderr, flush=True)
            found = []
        for job in reversed(found):
            if seen.get(job["id"]) != job["state"]:
                seen[job["id"]] = job["state"]
                text = (
                    json.dumps(job)
                    if as_json
                    else f"{job['id']} {job['state']} {job['device']} {job['name']} {job['reason']}".rstrip()
                )
                print(text, flush=True)
        if rounds is None or n < rounds:
            time.sleep(EVERY_S)


def _table(look: Callable[[], Any], rounds: int | None) -> None:
    """The screen, redrawn in place."""
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def drawn() -> Any:
        try:
            devices, found = look()
        except ServiceError as error:
            if error.status in (401, 403):
                raise
            return Text(f"the service does not answer, trying again: {error}", style="yellow")
        head = Text("   ").join(
            Text(f"{one['id']}: {one['status']}, {one['queued']:,} queued, {one['workers']} workers") for one in devices
        )
        table = Table(*COLUMNS, expand=True)
        for column in (table.columns[4], table.columns[5], table.columns[6]):
            column.justify = "right"
        for job in found:
            position = "" if job["queue_position"] is None else f"{job['queue_position']:,}"
            start, made = (job[name] or "" for name in ("expected_start", "created_at"))
            cells = (
                job["id"], job["name"], job["state"], job["device"], f"{job['circuits']:,}",
                f"{job['shots']:,}" if job["shots"] else "exact", position, start[11:19], made[11:19],
            )  # fmt: skip
            table.add_row(*map(Text, cells), style=STYLES.get(job["state"], ""))
        return Group(head, table, Text("times in UTC; Ctrl-C ends", style="dim"))

    with Live(drawn(), auto_refresh=False, screen=True) as live:
        n = 1
        while rounds is None or n < rounds:
            n += 1
            time.sleep(EVERY_S)
            live.update(drawn(), refresh=True)

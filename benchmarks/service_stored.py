"""Figures of the task service with millions of stored jobs: submit latency, pages and lists, and how fast old jobs are deleted.

    python -m benchmarks.service_stored --jobs 10000000 --folder /tmp/stored
    python -m benchmarks.service_stored --jobs 10000000 --database postgresql+psycopg://...

The database is filled by SQL with finished jobs of 1,000 users over 60 days, half of all jobs one user's, a quarter in batches of
100, and kept in `--folder` for the next run. Half of the jobs are older than the retention of 30 days. First everything is measured
with nothing to delete, then while the server deletes. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import sqlalchemy as sa

from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.service.maintenance import create_key
from qpeft.service.messages import Result, pack
from qpeft.service.store.database import Database
from qpeft.service.store.schema import jobs, metadata

RY = Circuit(1, (Op("ry", (0,), Angle(0)),), 1, 1)
SERVE = [sys.executable, "-c", "from qpeft.cli import service, main; main()", "serve", "--port", "0", "--executors", "0"]
DAYS = 60
OWNER = "CASE WHEN n % 2 = 0 THEN 'u0' ELSE 'u' || (n % 1000) END"
BATCH = "CASE WHEN n % 100 < 25 THEN 'b' || (n / 100) ELSE NULL END"
STATE = "CASE WHEN n % 50 = 0 THEN 'failed' WHEN n % 50 = 1 THEN 'cancelled' ELSE 'succeeded' END"
DEVICE = "CASE WHEN n % 10 = 0 THEN 'emulator:wukong-72' ELSE 'simulator' END"


def fill(url: str, n: int, now: float) -> None:
    """Fill an empty database with `n` finished jobs. Indexes of the large tables are made afterwards, which is quicker."""
    database = Database(url)
    database.migrate()
    tables = [metadata.tables[name] for name in ("jobs", "batches")]
    series = (
        "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {n}) "
        if database.sqlite
        else "WITH s AS (SELECT generate_series(1, {n}) AS n) "
    )
    data = pack(Result(kind="expectations", columns=4, data=np.zeros(4).tobytes())).hex()
    payload = f"x'{data}'" if database.sqlite else f"'\\x{data}'::bytea"
    made = f"{now - DAYS * 86400} + n * {DAYS * 86400 / n!r}"
    columns = {
        "seq": "n", "id": "'j' || n", "owner": OWNER, "device": DEVICE, "lane": "1", "batch": BATCH, "position": "n % 100",
        "state": STATE, "reason": "''", "name": "''", "program": "'p'", "params": payload, "rows": "1", "shots": "1000",
        "seed": "NULL",
        "output": "'expectations'", "observables": "NULL", "exclusive": "false", "attempt": "1", "worker": "NULL",
        "estimate_s": "0.01", "device_s": "0.01", "calibration": "NULL", "created_at": made, "started_at": made,
        "finished_at": made, "expires_at": "NULL", "changed": "n", "bytes": "128", "priority": "0",
    }  # fmt: skip
    with database.writer.connect() as connection:

        def run(text: str) -> None:
            connection.exec_driver_sql(text)

        for table in tables:
            for index in table.indexes:
                run(f"DROP INDEX {index.name}")
        if database.sqlite:
            run("PRAGMA synchronous=OFF")
        run("BEGIN") if database.sqlite else None
        names = ", ".join(columns)
        run(f"{series.format(n=n)} INSERT INTO jobs ({names}) SELECT {', '.join(columns.values())} FROM s")
        run(f"{series.format(n=n)} INSERT INTO results (seq, payload) SELECT n, {payload} FROM s WHERE {STATE} = 'succeeded'")
        run(
            f"{series.format(n=n // 100)} INSERT INTO batches (id, owner, device, kind, name, n_jobs, n_circuits, created_at) "
            f"SELECT 'b' || n, 'u0', 'simulator', 'batch', '', 25, 25, {now - DAYS * 86400} + n * {DAYS * 8640000 / n!r} FROM s"
        )
        run(f"INSERT INTO programs (hash, format, text, n_ops, used_at) VALUES ('p', 'qpeft.circuit', {payload}, 1, {now})")
        for k in range(1000):
            run(
                "INSERT INTO owners (id, name, weight, open_circuits, created_at, stored_bytes) "
                f"VALUES ('u{k}', 'user{k}', 1, 0, {now}, {64 * n})"
            )
        run(f"UPDATE counters SET value = {n + 1} WHERE name = 'tick'")
        connection.commit()
        for table in tables:
            for index in table.indexes:
                index.create(connection)
                connection.commit()
        if not database.sqlite:
            with database.reader.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
                other.exec_driver_sql("VACUUM ANALYZE")
    database.dispose()


class Served:
    """`qpeft serve` on the filled database."""

    def __init__(self, folder: Path, database: str | None, retention_days: float) -> None:
        command = [*SERVE, "--data-dir", str(folder), "--device", "simulator", "--device", "emulator:wukong-72"]
        command += ["--database", database] if database else []
        self.log = folder / "server.log"
        bounds = {"QPEFT_SERVICE_RETENTION_DAYS": str(retention_days), "QPEFT_SERVICE_MAX_STORED_BYTES": str(1 << 50)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **bounds})
        deadline = time.monotonic() + 120
        while "serving on" not in (text := self.log.read_text()):
            assert self.process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        self.url = text.partition("serving on ")[2].split("\n")[0]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def _quantiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{q:g}_ms": round(float(np.percentile(seconds, q)) * 1e3, 1) for q in (50, 99, 100)}


def _measure(http: httpx.Client, pages: dict[str, str], seconds: float) -> dict[str, Any]:
    """Submissions at four a second, one after the other, for so many seconds; and each page twenty times."""
    body = {"device": "simulator", "circuit": RY.to_dict(), "params": [0.1], "output": "expectations"}
    submits: list[float] = []
    found: dict[str, list[float]] = {name: [] for name in pages}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(submits) < 200:
        start = time.monotonic()
        http.post("/v1/jobs", json=body).raise_for_status()
        submits.append(time.monotonic() - start)
        for name in [list(pages)[len(submits) % len(pages)]]:
            start = time.monotonic()
            http.get(pages[name]).raise_for_status()
            found[name].append(time.monotonic() - start)
        time.sleep(max(0.0, 0.05 - (time.monotonic() - start)))
    return {"submit": _quantiles(submits), "n_submits": len(submits), **{name: _quantiles(one) for name, one in found.items()}}


def _oldest(database: Database) -> int:
    with database.reader.connect() as connection:
        return int(connection.execute(sa.select(sa.func.min(jobs.c.seq))).scalar_one())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--database")
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    url = options.database or f"sqlite:///{(options.folder / 'service.sqlite').resolve()}"
    mark = options.folder / "filled"
    if not mark.exists():
        start = time.monotonic()
        fill(url, options.jobs, time.time())
        mark.write_text(str(options.jobs))
        print(f"filled in {time.monotonic() - start:.0f} s", file=sys.stderr)
    os.environ.update({"QPEFT_SERVICE_DATABASE": options.database} if options.database else {})
    key = create_key(None if options.database else options.folder, "user0", ("submit", "read"))
    n = int(mark.read_text())
    batch = f"/v1/batches/b{n // 200}"
    pages = {
        "job": f"/v1/jobs/j{n // 2 // 2 * 2}", "jobs": "/v1/jobs", "jobs, far back": f"/v1/jobs?cursor={n // 2 + 1000}",
        "jobs failed": "/v1/jobs?state=failed", "jobs expired (none)": "/v1/jobs?state=expired",
        "jobs of a device": "/v1/jobs?device=emulator:wukong-72",
        "jobs failed of a device": "/v1/jobs?state=failed&device=emulator:wukong-72",
        "batches": "/v1/batches", "batch results": f"{batch}/results", "usage": "/v1/usage", "devices": "/v1/devices",
    }  # fmt: skip
    figures: dict[str, Any] = {"jobs": n, "load_before": round(os.getloadavg()[0], 1)}
    database = Database(url)
    for name, days in (("at rest", 10 * DAYS), ("while old jobs are deleted", DAYS / 2)):
        served = Served(options.folder, options.database, days)
        headers = {"authorization": f"Bearer {key}"}
        try:
            with httpx.Client(base_url=served.url, headers=headers, timeout=60) as http:
                http.get("/v1/jobs").raise_for_status()
                time.sleep(2)
                first, start = _oldest(database), time.monotonic()
                figures[name] = _measure(http, pages, options.seconds)
                figures[name]["deleted_per_s"] = round((_oldest(database) - first) / (time.monotonic() - start))
        finally:
            served.stop()
    database.dispose()
    figures["load_after"] = round(os.getloadavg()[0], 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

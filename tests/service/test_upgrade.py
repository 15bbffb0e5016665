"""A rolling upgrade: servers of an older and of this version on one database, with jobs under way.

The older version is the last one in the repository's history whose schema is older than today's.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import httpx
import pytest

from qpeft.errors import QpeftError
from qpeft.service.client import Client, Retries
from qpeft.service.maintenance import verify
from qpeft.service.store.database import revisions
from tests.service.checks import RY, audit_database, until
from tests.service.processes import Process, Server

pytestmark = [pytest.mark.slow, pytest.mark.postgres]
ROOT = Path(__file__).parents[2]
VERSIONS = "src/qpeft/service/store/migrations/versions"


def older_source(folder: Path) -> Path:
    """`src` of the last version whose schema is older."""

    def git(*arguments: str) -> bytes:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
        return done.stdout if done.returncode == 0 else b""

    def numbers(commit: str) -> list[str]:
        names = git("ls-tree", "--name-only", commit, f"{VERSIONS}/").decode().split()
        return [Path(name).name[1:5] for name in names if Path(name).name.startswith("v")]

    newest = revisions()[-1]
    commits = git("log", "--format=%H", "--", VERSIONS).decode().split()
    sound = (one for one in commits if (found := numbers(one)) and max(found) < newest and len(set(found)) == len(found))
    commit = next(sound, None)
    archive = b"" if commit is None else git("archive", commit, "src")
    if not archive:
        pytest.skip("the history of the repository has no version with an older schema")
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    for library in (ROOT / "src").rglob("*.so"):
        if (target := folder / library.relative_to(ROOT)).parent.is_dir():
            shutil.copy(library, target)
    return folder / "src"


class Traffic(threading.Thread):
    """Submits jobs one after the other to whichever server is ready, as a balancer would have it."""

    def __init__(self, key: str) -> None:
        super().__init__(daemon=True)
        self.key, self.urls, self.jobs = key, list[str](), list[str]()
        self.stopping = threading.Event()
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            for url in list(self.urls):
                try:
                    if httpx.get(f"{url}/readyz", timeout=10).status_code != 200:
                        continue
                    with Client(url, self.key, retries=Retries(request_s=20, total_s=20)) as client:
                        self.jobs.append(client.submit(RY, device="simulator", params=[0.1], output="expectations")["id"])
                except httpx.TransportError:  # it has gone; the next one takes it
                    continue
                except QpeftError as error:
                    self.failures.append(f"{url}: {error}")
            time.sleep(0.02)


def test_servers_are_upgraded_one_after_the_other(
    sqlite_server: Callable[..., Server], postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers of the older version with two API processes each and a worker each become new ones; no job is lost."""
    source = older_source(tmp_path / "older")
    drain = {"QPEFT_SERVICE_DRAIN_S": "3"}
    older = {"PYTHONPATH": str(source), **(drain if "drain_s" in (source / "qpeft/service/settings.py").read_text() else {})}
    arguments = ("--executors", "0", "--workers", "2", "--database", postgres_url)
    olds = [sqlite_server(*arguments, environment=older) for _ in range(2)]
    key, worker_key = olds[0].new_key("load"), olds[0].new_key("workers", "worker")
    traffic = Traffic(key)
    traffic.urls = [one.url for one in olds]
    workers = [one.worker(worker_key, "old", environment=older) for one in olds]
    news: list[Server] = []
    successors: list[Process] = []
    traffic.start()
    try:
        until(lambda: len(traffic.jobs) > 20, 60)
        for old, worker in zip(olds, workers, strict=True):
            assert worker.stop() == 0, (old.folder / "old.log").read_text()
            assert old.stop() == 0, old.output()
            traffic.urls.remove(old.url)
            news.append(sqlite_server(*arguments, environment=drain))  # the first one migrates
            traffic.urls.append(news[-1].url)
            successors.append(news[-1].worker(worker_key, "new"))
            before = len(traffic.jobs)
            until(lambda: len(traffic.jobs) > before + 20, 60)  # noqa: B023 - called at once
        client = news[0].client(key)
        traffic.stopping.set()
        traffic.join(60)
        until(lambda: client.usage()["open_circuits"] == 0, 60)
        assert [worker.stop() for worker in successors] == [0, 0]
    finally:
        traffic.stopping.set()
        for worker in (*workers, *successors):
            worker.kill()
    assert traffic.failures == []
    assert len(set(traffic.jobs)) == len(traffic.jobs)
    audit_database(postgres_url, len(traffic.jobs))
    monkeypatch.setenv("QPEFT_SERVICE_DATABASE", postgres_url)
    assert verify(None) == []
    with pytest.raises(AssertionError, match="newer than this program"):
        sqlite_server(*arguments, environment=older)

"""`qpeft serve`: the API, its database and its worker processes in one command.

One process serves HTTP on SQLite; with `workers` > 1 (PostgreSQL) a supervisor starts that many. Worker processes are children that
end with their parent. Listening beyond loopback needs TLS, or a proxy in front that speaks it, said explicitly.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

try:
    import fcntl
    import resource
except ImportError as error:
    from qpeft.platforms import require_posix

    require_posix("the task service")
    raise ImportError("Python without POSIX modules") from error

from qpeft.backends.registry import check_name, is_origin_chip
from qpeft.errors import QpeftError, ServiceError
from qpeft.service.clock import Clock
from qpeft.service.ids import new_key
from qpeft.service.logs import configure
from qpeft.service.processes import Children, end_with
from qpeft.service.settings import DEFAULT_DEVICES, Settings
from qpeft.service.store import admin
from qpeft.service.store.database import Database, shown_url
from qpeft.service.store.writer import Writer

log = logging.getLogger("qpeft.service")
EXECUTOR = "qpeft-executor"
ENV_SETTINGS = "QPEFT_SERVE_SETTINGS"
BACKLOG = 2048
RENEW_S = 1.0  # between two looks at the certificate's files
CERTAIN = frozenset(DEFAULT_DEVICES)
NO_PASSPHRASE = ""  # without it OpenSSL would ask at the terminal
OPEN_S = 120.0  # for devices to open
BIND_S = 3.0  # children of a killed server need a moment to end and to leave its port


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_settings(settings: Settings) -> None:
    """Refuse, before anything is started, what would be insecure, would lose work or cannot run. Raises ServiceError."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ServiceError("a certificate and its key come together", status=0, hint="give --tls-cert and --tls-key")
    if settings.tls_cert is not None and settings.tls_key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, NO_PASSPHRASE)
        except (OSError, ssl.SSLError) as error:
            files = f"{settings.tls_cert}, {settings.tls_key}"
            hint = "two PEM files, the key without a passphrase"
            raise ServiceError(f"the certificate cannot be read: {error}", status=0, value=files, hint=hint) from error
    if not is_loopback(settings.host) and settings.tls_cert is None and not settings.behind_proxy:
        raise ServiceError(
            "listening beyond this machine without TLS would show keys to the network",
            status=0,
            value=settings.host,
            bound="127.0.0.1, ::1, localhost",
            hint="give --tls-cert and --tls-key, or --behind-proxy when a proxy in front speaks TLS",
        )
    if settings.workers > 1 and settings.database_url.startswith("sqlite"):
        raise ServiceError(
            "SQLite has one writer",
            status=0,
            value=f"--workers {settings.workers}",
            bound=1,
            hint="--database postgresql+psycopg://...",
        )
    if settings.oidc_issuer is not None and not (settings.oidc_client_id and settings.oidc_client_secret):
        raise ServiceError(
            "an OpenID provider needs the client's id and secret",
            status=0,
            hint="set QPEFT_SERVICE_OIDC_CLIENT_ID and QPEFT_SERVICE_OIDC_CLIENT_SECRET",
        )
    for name in settings.devices:
        try:
            check_name(name)
        except QpeftError as error:
            raise ServiceError(f"no such device: {error}", status=0, hint="qpeft devices lists them") from error


def check_devices(settings: Settings) -> None:
    """Open every device that may fail to open, in a process of its own. Raises ServiceError with the reason.

    A missing package, key or chip file is found here, before anything is served. Chips that come with qpeft always open.
    """
    doubtful = [name for name in settings.devices if name not in CERTAIN]
    if not doubtful or not settings.executors:
        return
    command = [sys.executable, "-m", "qpeft.service.worker", "--check", *doubtful]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=OPEN_S, check=False)
        status, told = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        status, told = 1, f"it took more than {OPEN_S:g} s"
    if status != 0:
        reason = (told.strip().splitlines() or ["no reason was given"])[-1]
        raise ServiceError(f"a device cannot be opened: {reason}", status=0, value=", ".join(doubtful))


def check_key_file(file: Path) -> None:
    """Refuse a file that the first key could not be written to: the key would be lost. Raises ServiceError."""
    folder = file.parent
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        why = "is a folder" if file.is_dir() else "is in a folder that is not there, or may not be written"
        raise ServiceError(f"the file for the first key {why}", status=0, value=str(file), hint="give another --admin-key-file")


@contextlib.contextmanager
def owned(data_dir: Path) -> Iterator[None]:
    """The data folder, for this server alone."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(data_dir / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ServiceError(
            "another server uses this folder", status=0, value=str(data_dir), hint="give another --data-dir"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def prepare(settings: Settings) -> tuple[str | None, str]:
    """Migrate, and make keys: `(first administrator's key or None when there are keys, this start's key for worker processes)`.

    Raises ServiceError when the database cannot be reached or written.
    """
    database = Database(settings.database_url)
    writer = None
    try:
        try:
            database.migrate()
        except sa.exc.DBAPIError as error:
            first_line = str(error.orig).strip().splitlines()[0]
            raise ServiceError(
                f"the database cannot be used: {first_line}", status=0, value=shown_url(database.url), hint="is it running?"
            ) from error
        writer = Writer(database, Clock())
        first, prefix, digest = new_key()
        everything = ("submit", "read", "admin")
        shown: str | None = first
        try:
            writer.call_sync(admin.create_key, admin.NewKey("start", prefix, digest, "admin", everything, only_first=True))
        except ServiceError as refusal:
            if refusal.code != "not_first":
                raise
            shown = None
        internal, prefix, digest = new_key()
        if settings.executors:
            alone = database.sqlite  # servers that share a PostgreSQL each have their own
            writer.call_sync(admin.create_key, admin.NewKey("start", prefix, digest, EXECUTOR, ("worker",), only_one=alone))
        return shown, internal
    finally:
        if writer is not None:
            writer.close()
        database.dispose()


def hand_out(key: str, file: Path | None) -> None:
    """The first key: into a file that only its owner reads, or printed, once."""
    if file is None:
        print(f"first administrator's key, shown this once: {key}", flush=True)
        return
    with contextlib.suppress(FileNotFoundError):
        file.unlink()
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as stream:
        stream.write(key + "\n")


def serve(settings: Settings, admin_key_file: Path | None = None) -> None:
    """Run the service until SIGINT or SIGTERM.

    Args:
        settings: the service's settings.
        admin_key_file: where the first administrator's key is written; None prints it.

    Raises:
        ServiceError: settings that do not fit together, or a data folder in use.
    """
    check_settings(settings)
    if admin_key_file is not None:
        check_key_file(admin_key_file)
    check_devices(settings)
    with (
        owned(settings.data_dir) if settings.database is None else contextlib.nullcontext(),
        contextlib.closing(_listen(settings)) as listener,
    ):
        first, internal = prepare(settings)
        if first is not None:
            hand_out(first, admin_key_file)
        scheme = "https" if settings.tls_cert else "http"
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "localhost") else settings.host
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        print(f"serving on {url}", flush=True)
        environment = {**os.environ, "QPEFT_SERVICE_KEY": internal}
        here, vendors = _executor_commands(settings, url)
        # a vendor that is away is asked again for ever; a device of this machine that does not open will not either
        executors = Children(here, environment, give_up=lambda: None), Children(vendors, environment)
        for group in executors:
            group.start()
        try:
            if settings.workers == 1:
                run_api(settings, listener)
            else:
                _supervise(settings, listener)
        finally:
            for group in executors:
                group.stop()


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + BIND_S
    while True:
        try:
            listener.bind((settings.host, settings.port))
            break
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            listener.close()
            address = f"{settings.host}:{settings.port}"
            hint = "give another --port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "give another --host"
            raise ServiceError(f"cannot listen: {error.strerror}", status=0, value=address, hint=hint) from error
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener


def _many_files() -> None:
    """Each connection is a file: allow as many as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 16 if hard == resource.RLIM_INFINITY else min(hard, 1 << 16)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run_api(settings: Settings, listener: socket.socket) -> None:
    """One API process on a listening socket, until SIGINT or SIGTERM.

    Args:
        settings: the service's settings.
        listener: the listening socket.
    """
    import uvicorn

    from qpeft.service.api.http_protocol import bounded_protocol
    from qpeft.service.app import app
    from qpeft.service.core import Service

    sys.setswitchinterval(0.001)
    _many_files()
    service = Service(settings)
    config = uvicorn.Config(
        app(service),
        http=bounded_protocol(settings),
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
        proxy_headers=settings.behind_proxy,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=str(settings.tls_key) if settings.tls_key else None,
        ssl_keyfile_password=NO_PASSPHRASE,
    )

    class Server(uvicorn.Server):
        """Tells requests that wait for work or results to end, before it waits for them; then returns, where uvicorn's would raise
        the signal once more and end the process before its children."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if isinstance(config.ssl, ssl.SSLContext):
                self._watching = asyncio.create_task(_renew_certificate(settings, config.ssl))

        def handle_exit(self, sig: int, frame: Any) -> None:
            if settings.drain_s and not service.draining:
                service.draining = True  # /readyz tells a balancer; requests are served meanwhile
                loop = asyncio.get_running_loop()
                loop.call_soon_threadsafe(loop.call_later, settings.drain_s, self.end)
            else:
                self.end()

        def end(self) -> None:
            service.stopping = service.draining = True
            service.hub.stop()
            self.force_exit = self.should_exit
            self.should_exit = True

    try:
        Server(config).run(sockets=[listener])
    finally:
        service.close()


async def _renew_certificate(settings: Settings, context: ssl.SSLContext) -> None:
    """Take a certificate that was replaced on disk for new connections; a pair that cannot be read is left alone, and told."""
    assert settings.tls_cert is not None
    assert settings.tls_key is not None
    files = settings.tls_cert, settings.tls_key
    seen = _changed_at(files)
    while True:
        await asyncio.sleep(RENEW_S)
        if (now := _changed_at(files)) in (seen, None):
            continue
        seen = now
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files, NO_PASSPHRASE)
            context.load_cert_chain(*files, NO_PASSPHRASE)
            log.info("the certificate was renewed")
        except (OSError, ssl.SSLError) as error:
            log.error("the new certificate cannot be read, the old one stays: %s", error)


def _changed_at(files: Sequence[Path]) -> tuple[int, ...] | None:
    try:
        return tuple(file.stat().st_mtime_ns for file in files)
    except OSError:  # it is being replaced
        return None


def _executor_commands(settings: Settings, url: str) -> tuple[list[list[str]], list[list[str]]]:
    """Commands of workers that each run every device of this machine; and of one worker for each vendor's device."""
    here = [name for name in settings.devices if not is_origin_chip(name)]
    vendors = [name for name in settings.devices if is_origin_chip(name)]
    shares = [here] * settings.executors * bool(here)
    commands = []
    for number, devices in enumerate(shares + [[name] for name in vendors if settings.executors]):
        name = f"{socket.gethostname()} {settings.data_dir.resolve()} {number}"[-128:]
        pinned = str(settings.tls_cert.resolve()) if settings.tls_cert is not None else None
        arguments = {"url": url, "devices": devices, "parent": os.getpid(), "name": name, "pinned_cert": pinned}
        commands.append([sys.executable, "-m", "qpeft.service.worker", json.dumps(arguments)])
    return commands[: len(shares)], commands[len(shares) :]


def _supervise(settings: Settings, listener: socket.socket) -> None:
    """Many API processes on one socket; each is this program again with the socket inherited. Settings may hold a password, so
    that they travel in the environment. Raises ServiceError when the processes do not start."""
    command = [sys.executable, "-m", "qpeft.service.server", str(listener.fileno()), str(os.getpid())]
    stop, failed = threading.Event(), threading.Event()

    def give_up() -> None:
        failed.set()
        stop.set()

    with tempfile.TemporaryDirectory(prefix="qpeft-metrics-") as folder:
        environment = {**os.environ, ENV_SETTINGS: settings.model_dump_json(), "PROMETHEUS_MULTIPROC_DIR": folder}
        children = Children([command] * settings.workers, environment, (listener.fileno(),), give_up)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        children.start()
        stop.wait()
        children.stop(settings.drain_s)
    if failed.is_set():
        raise ServiceError("the API processes do not start", status=0, hint="the lines above say why")


if __name__ == "__main__":  # one of many API processes
    configure()
    end_with(int(sys.argv[2]))
    run_api(Settings.model_validate_json(os.environ[ENV_SETTINGS]), socket.socket(fileno=int(sys.argv[1])))

"""Settings of the service: from arguments, then from `QPEFT_SERVICE_*` in the environment, then these defaults."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from qpeft.errors import ServiceError

OTHER_VARIABLES = frozenset({"QPEFT_SERVICE_URL", "QPEFT_SERVICE_KEY", "QPEFT_SERVICE_CA"})
"""Variables of clients and workers, which are no settings of the service."""
DEFAULT_DEVICES = ("simulator", "emulator:wukong-72", "emulator:wukong-180")


def _listed(value: Any) -> Any:
    """Words of a variable: `a, b` or `["a", "b"]`."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError('write a,b or ["a", "b"]') from error
    return tuple(word.strip() for word in value.split(",") if word.strip())


Words: TypeAlias = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """Every bound of the service is here, so that a refusal can name it. Times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="QPEFT_SERVICE_", extra="forbid")

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8642, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and prints it."""
    data_dir: Path = Path("qpeft-service")
    """Folder of the database and the lock."""
    database: str | None = None
    """A SQLAlchemy address such as `postgresql+psycopg://...`; None is SQLite inside `data_dir`."""
    workers: int = Field(default=1, ge=1, le=64)
    """API processes; more than one needs PostgreSQL."""
    executors: int = Field(default=1, ge=0, le=64)
    """Worker processes started with the server; 0 leaves running circuits to `qpeft worker`."""
    devices: Words = DEFAULT_DEVICES
    """Devices of the workers that are started with the server."""
    behind_proxy: bool = False
    """Listen beyond loopback without TLS, because a proxy in front of the service speaks it."""
    tls_cert: Path | None = None
    """Certificate (PEM)."""
    tls_key: Path | None = None
    """Key of the certificate (PEM)."""

    max_result_bytes: int = Field(default=64 << 20, ge=1024)
    """Bytes of one job's result, before it is written as JSON."""
    max_job_s: float = Field(default=600.0, gt=0)
    """Bound on the estimated duration of a job (s), and the time after which a running job is cut off (s)."""
    max_jobs: int = Field(default=20_000, ge=1)
    """Jobs of one request: circuits of a batch, or slices of a sweep."""
    max_stored_bytes: int = Field(default=4 << 30, ge=1024)
    """Bound on a user's stored parameters and results (bytes)."""
    user_vendor_shots: int | None = Field(default=0, ge=0)
    """Shots that a user without a bound of their own may send to vendors, ever; None sets no bound."""
    user_day_circuits: int | None = Field(default=None, ge=0)
    """Circuits that a user without a quota of their own may submit on one day (UTC); None sets no bound."""
    user_day_shots: int | None = Field(default=None, ge=0)
    """Shots that a user without a quota of their own may submit on one day (UTC); None sets no bound."""
    max_waits: int = Field(default=256, ge=1)
    """Requests of one user that wait (`?wait=`) at the same time, in one API process."""
    max_streams: int = Field(default=32, ge=1)
    """Event streams of one user at the same time, in one API process."""
    max_connections_per_address: int = Field(default=512, ge=1)
    """Connections of one address; with `behind_proxy` all are the proxy's, and this does not hold."""
    webhook_hosts: Words = ()
    """Hosts that webhooks may go to, such as `hooks.example.org` or `*.example.org`; empty is none."""
    drain_s: float = Field(default=0.0, ge=0)
    """Seconds after SIGTERM for which requests are still served while `/readyz` says 503, so that a balancer looks elsewhere."""
    oidc_issuer: str | None = None
    """An OpenID Connect provider whose users may sign in to the dashboard."""
    oidc_client_id: str | None = None
    oidc_client_secret: str | None = Field(default=None, repr=False)
    oidc_domains: Words = ()
    """Domains of the (verified) e-mail addresses that may sign in; empty takes every user of the provider."""
    oidc_admins: Words = ()
    """E-mail addresses of administrators."""
    min_free_bytes: int = Field(default=64 << 20, ge=0)
    """Free space of the data folder's disk below which the service is not ready."""

    max_body_bytes: int = Field(default=8 << 20, ge=1024)
    """Largest body of a request."""
    body_timeout_s: float = Field(default=20.0, gt=0)
    """Time in which a body must arrive."""
    header_timeout_s: float = Field(default=10.0, gt=0)
    """Time in which the head of a request must arrive."""
    max_connections: int = Field(default=2048, ge=1)
    """Open connections of one API process."""
    max_program_bytes: int = Field(default=1 << 18, ge=64)
    """Largest OpenQASM or OriginIR program."""
    max_read_s: float = Field(default=5.0, gt=0)
    """Seconds that reading one OpenQASM or OriginIR program may take."""
    max_request_read_s: float = Field(default=20.0, gt=0)
    """Seconds that reading all programs of one request may take."""
    max_ops: int = Field(default=20_000, ge=1)
    """Gates of one circuit."""
    max_rows: int = Field(default=1_000_000, ge=1)
    """Circuits in one batch or rows of one sweep."""
    max_shots: int = Field(default=1_000_000, ge=1)
    """Shots of one circuit."""
    max_observables: int = Field(default=4096, ge=1)
    """Observables of one job."""
    max_open_circuits: int = Field(default=2_000_000, ge=1)
    """Circuits one user may have queued or running."""
    rate_per_s: int = Field(default=5000, ge=1)
    """Requests per second of one user, in one API process."""
    bad_key_rate_per_s: int = Field(default=20, ge=1)
    """Failed logins per second from one address."""

    lease_s: float = Field(default=15.0, gt=0)
    """A worker without heartbeat for this long loses its jobs."""
    max_attempts: int = Field(default=5, ge=1)
    """Attempts of a job whose workers die; then it fails."""
    lease_budget_s: float = Field(default=0.1, gt=0)
    """Device seconds of one lease: the longest time that another user's job waits behind it."""
    lease_jobs: int = Field(default=96, ge=1)
    """Jobs of one lease, at most."""
    max_vendor_shots: int | None = Field(default=None, ge=0)
    """Shots that may ever be sent to vendors, which charge for them; None sets no bound."""
    interactive_s: float = Field(default=0.05, ge=0)
    """A single job estimated below this goes to the interactive lane."""
    interactive_open: int = Field(default=16, ge=0)
    """Most interactive jobs that a user may have queued on a device. More go to the bulk lane."""
    interactive_share: float = Field(default=0.25, gt=0, le=1)
    """Part of a lease that the interactive lane may take from waiting bulk work."""
    slice_rows: int = Field(default=1000, ge=1)
    """Rows of one job of a sweep, at most."""
    slice_s: float = Field(default=0.25, gt=0)
    """A sweep is cut into jobs of at most this many rows and estimated seconds."""
    retention_days: float = Field(default=30.0, gt=0)
    """Finished jobs and results are deleted after this time."""
    idempotency_days: float = Field(default=7.0, gt=0)
    """An `Idempotency-Key` is remembered for this time."""

    @classmethod
    def load(cls, **given: Any) -> Settings:
        """Settings from arguments and environment. ServiceError, in one line, for what is wrong or misspelt, all at once."""
        prefix = "QPEFT_SERVICE_"
        known = {prefix + name.upper() for name in cls.model_fields} | OTHER_VARIABLES
        wrong = []
        for name in sorted(name for name in os.environ if name.upper().startswith(prefix) and name.upper() not in known):
            close = difflib.get_close_matches(name.upper(), known, 1)
            wrong.append(f"{name} is no setting" + (f"; did you mean {close[0]}?" if close else ""))
        made = None
        try:
            made = cls(**given)
        except ValidationError as error:
            wrong += [
                f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}, not {one['input']!r}"
                for one in error.errors()
            ]
        if wrong or made is None:
            raise ServiceError("settings: " + "; ".join(wrong), status=0, hint="docs/reference/service-settings.md lists them")
        return made

    @property
    def database_url(self) -> str:
        """The SQLAlchemy address: `database`, or SQLite in `data_dir`."""
        return self.database or f"sqlite:///{(self.data_dir / 'service.sqlite').resolve()}"

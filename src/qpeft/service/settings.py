"""Settings of the service: from arguments, then from `QPEFT_SERVICE_*` in the environment, then these defaults."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_DEVICES = ("simulator", "emulator:wukong-72", "emulator:wukong-180")


class Settings(BaseSettings):
    """Every bound of the service is here, so that a refusal can name it. Times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="QPEFT_SERVICE_", extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8642, ge=0, le=65535)
    data_dir: Path = Path("qpeft-service")
    database: str | None = None
    """A SQLAlchemy address such as `postgresql+psycopg://...`; None is SQLite inside `data_dir`."""
    workers: int = Field(default=1, ge=1, le=64)
    """API processes; more than one needs PostgreSQL."""
    executors: int = Field(default=1, ge=0, le=64)
    """Worker processes started with the server; 0 leaves running circuits to `qpeft worker`."""
    devices: tuple[str, ...] = DEFAULT_DEVICES
    behind_proxy: bool = False
    """Listen beyond loopback without TLS, because a proxy in front of the service speaks it."""
    tls_cert: Path | None = None
    tls_key: Path | None = None

    max_body_bytes: int = Field(default=8 << 20, ge=1024)
    body_timeout_s: float = Field(default=20.0, gt=0)
    header_timeout_s: float = Field(default=10.0, gt=0)
    max_connections: int = Field(default=2048, ge=1)
    max_program_bytes: int = Field(default=1 << 18, ge=64)
    max_ops: int = Field(default=20_000, ge=1)
    max_rows: int = Field(default=1_000_000, ge=1)
    """Circuits in one batch or rows of one sweep."""
    max_shots: int = Field(default=1_000_000, ge=1)
    max_observables: int = Field(default=4096, ge=1)
    max_open_circuits: int = Field(default=2_000_000, ge=1)
    """Circuits one user may have queued or running."""
    rate_per_s: int = Field(default=5000, ge=1)
    """Requests a second of one key."""
    bad_key_rate_per_s: int = Field(default=20, ge=1)
    """Failed logins a second from one address."""

    lease_s: float = Field(default=15.0, gt=0)
    """A worker not heard of for this long has lost its jobs."""
    max_attempts: int = Field(default=5, ge=1)
    lease_budget_s: float = Field(default=0.1, gt=0)
    """Device seconds given out in one lease: what another user's job waits at most behind it."""
    lease_jobs: int = Field(default=96, ge=1)
    """... and at most so many jobs: the service itself takes time for each, which no device counts."""
    max_vendor_shots: int | None = Field(default=None, ge=0)
    """Shots that may ever be sent to vendors, which charge for them; None sets no bound."""
    interactive_s: float = Field(default=0.05, ge=0)
    """A single job estimated below this goes to the interactive lane."""
    interactive_open: int = Field(default=16, ge=0)
    """... unless its user has this many interactive jobs queued on the device already."""
    interactive_share: float = Field(default=0.25, gt=0, le=1)
    """Part of a lease that the interactive lane may take from waiting bulk work."""
    slice_rows: int = Field(default=1000, ge=1)
    slice_s: float = Field(default=0.25, gt=0)
    """A sweep is cut into jobs of at most this many rows and estimated seconds."""
    retention_days: float = Field(default=30.0, gt=0)
    idempotency_days: float = Field(default=7.0, gt=0)

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{(self.data_dir / 'service.sqlite').resolve()}"

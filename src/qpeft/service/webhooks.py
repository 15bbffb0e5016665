"""Delivers webhooks: a signed POST for every end of a job, in order, until the other side has taken it.

The form is that of Standard Webhooks (standardwebhooks.com): the headers `webhook-id`, `webhook-timestamp` and `webhook-signature`
(`v1,` and the base64 HMAC-SHA256 of `id.timestamp.body`). The same delivery again has the same id. Only hosts that an administrator
listed (`QPEFT_SERVICE_WEBHOOK_HOSTS`) are asked, and redirects are not followed: users cannot make the service call others.
"""

from __future__ import annotations

import asyncio
import base64
import fnmatch
import hashlib
import hmac
import logging
import secrets
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import msgspec

from qpeft.errors import ServiceError
from qpeft.service.settings import Settings
from qpeft.service.store import webhooks as store
from qpeft.service.store.directory import stamp
from qpeft.service.store.queries import Queries, job_view
from qpeft.service.store.schema import TERMINAL, Row
from qpeft.service.store.writer import Writer

log = logging.getLogger("qpeft.service")
PAGE: Final = 100  # jobs in one delivery
TIMEOUT_S: Final = 10.0
IDLE_S: Final = 1.0
PREFIX: Final = "whsec_"


def new_secret() -> bytes:
    """192 random bits."""
    return secrets.token_bytes(24)


def shown(secret: bytes) -> str:
    """A secret as its user gets it, once."""
    return PREFIX + base64.b64encode(secret).decode()


def check_url(url: str, hosts: tuple[str, ...]) -> None:
    """Check the address of a webhook.

    Args:
        url: the address.
        hosts: hosts that are allowed; `*.` at the start stands for every host below a domain.

    Raises:
        ServiceError: 422, no http(s) address, or another host.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme not in ("https", "http") or not host or parts.username is not None or port == 0:
        raise ServiceError("not an address of a webhook", status=422, code="url", value=url[:200], bound="https://host/path")
    if not any(fnmatch.fnmatchcase(host.lower(), pattern.lower()) for pattern in hosts):
        hint = "an administrator lists hosts in QPEFT_SERVICE_WEBHOOK_HOSTS"
        raise ServiceError(
            "no webhooks to this host", status=422, code="host", value=host[:200], bound=", ".join(hosts) or "none", hint=hint
        )


def signed(secret: bytes, name: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a signed delivery (Standard Webhooks).

    Args:
        secret: the webhook's key.
        name: id of the delivery.
        timestamp: seconds since 1970.
        body: what is delivered.
    """
    content = f"{name}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()
    return {"webhook-id": name, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{signature}"}


class Deliverer:
    """The chore of one API process that delivers what is due.

    Args:
        settings: the hosts that may be asked.
        queries: the store, to read.
        writer: the store, to write.
    """

    def __init__(self, settings: Settings, queries: Queries, writer: Writer) -> None:
        self.settings, self.queries, self.writer = settings, queries, writer
        self._client: httpx.AsyncClient | None = None

    async def run(self) -> float:
        """Deliver what is due; returns seconds to the next look."""
        if not self.settings.webhook_hosts:
            return 60.0
        if not await asyncio.to_thread(self.queries.webhooks_are_due, self.writer.now):
            return IDLE_S
        taken = await self.writer.call(store.take_due, None)
        await asyncio.gather(*(self._deliver(row) for row in taken))
        return 0.0 if taken else IDLE_S

    async def close(self) -> None:
        """Close connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _deliver(self, row: Row) -> None:
        changes = await asyncio.to_thread(self.queries.changes, row.owner, (row.changed, row.seq), PAGE)
        place = (changes[-1].changed, changes[-1].seq) if changes else (row.changed, row.seq)
        ended = [job_view(job) for job in changes if job.state in TERMINAL]
        error = await self._post(row, f"{row.id}-{place[0]}-{place[1]}", ended) if ended else ""
        if error:
            log.warning("webhook %s failed: %s", row.id, error)
        await self.writer.call(store.settle, store.Delivery(row.id, *place, error))

    async def _post(self, row: Row, name: str, ended: list[dict[str, Any]]) -> str:
        """Why it was not taken, empty when it was."""
        now = self.writer.now
        body = msgspec.json.encode({"type": "jobs.ended", "timestamp": stamp(now), "data": {"jobs": ended}})
        headers = {"content-type": "application/json", **signed(bytes(row.secret), name, int(now), body)}
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False)
        try:
            check_url(row.url, self.settings.webhook_hosts)  # a host may have been taken off the list
            async with self._client.stream("POST", row.url, content=body, headers=headers) as answer:
                return "" if answer.is_success else f"status {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, ServiceError) as error:
            return f"{type(error).__name__}: {error}"

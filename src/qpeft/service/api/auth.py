"""Who asks: a key in `Authorization: Bearer ...` (or `oqcs_auth=...`, as pyqpanda3 sends it), its scopes, its rate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from qpeft.errors import ServiceError
from qpeft.service.core import Service
from qpeft.service.ids import digest

CACHE_S: Final = 2.0
CACHE_KEYS: Final = 10_000


@dataclass(frozen=True)
class Principal:
    prefix: str
    owner: str
    scopes: frozenset[str]
    name: str


class Rate:
    """A bucket of `per_s` tokens for each name, filled at that rate."""

    def __init__(self, per_s: int) -> None:
        self.per_s = per_s
        self._buckets: dict[str, tuple[float, float]] = {}

    def hit(self, name: str) -> bool:
        """Take a token; False when there is none."""
        now = time.monotonic()
        tokens, since = self._buckets.get(name, (float(self.per_s), now))
        tokens = min(tokens + (now - since) * self.per_s, self.per_s)
        if len(self._buckets) >= CACHE_KEYS:
            self._buckets = {key: kept for key, kept in self._buckets.items() if now - kept[1] < 1.0}
        self._buckets[name] = (max(tokens - 1.0, 0.0), now)
        return tokens >= 1.0


class Keys:
    """Looks keys up by their SHA-256 and remembers them for `CACHE_S` seconds, after which a revoked one is refused."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._cache: dict[bytes, tuple[float, Principal]] = {}
        self._rate, self._bad_rate = Rate(service.settings.rate_per_s), Rate(service.settings.bad_key_rate_per_s)

    def forget(self) -> None:
        self._cache.clear()

    async def principal(self, request: Request) -> Principal:
        """Raises ServiceError 401 or 429."""
        key = _key(request)
        address = request.client.host if request.client else "unknown"
        if key is None:
            raise ServiceError("no key", status=401, code="no_key", hint="send the header Authorization: Bearer YOUR_KEY")
        principal = await self.holder(key, address)
        if not self._rate.hit(principal.prefix):
            raise ServiceError("too many requests", status=429, code="rate", bound=f"{self._rate.per_s} a second", retry_after_s=1)
        return principal

    async def holder(self, key: str, address: str) -> Principal:
        """Who has the key; wrong ones are counted by address."""
        principal = await self.check(digest(key))
        if principal is None:
            if not self._bad_rate.hit(address):
                raise ServiceError(
                    "too many wrong keys", status=429, code="rate", bound=f"{self._bad_rate.per_s} a second", retry_after_s=1
                )
            raise ServiceError("not a key in use", status=401, code="bad_key")
        return principal

    @staticmethod
    def digest_of(request: Request) -> bytes:
        """The digest of a key that `principal` has accepted."""
        return digest(_key(request) or "")

    async def check(self, name: bytes) -> Principal | None:
        """The holder of the key with this digest, None when there is none in use."""
        now = time.monotonic()
        cached = self._cache.get(name)
        if cached is not None and now - cached[0] < CACHE_S:
            return cached[1]
        row = await self.service.ask(self.service.queries.key, name)
        if row is None:
            self._cache.pop(name, None)
            return None
        principal = Principal(row.prefix, row.owner, frozenset(row.scopes.split()), row.name)
        if len(self._cache) >= CACHE_KEYS:
            self._cache.clear()
        self._cache[name] = (now, principal)
        return principal


def _key(request: Request) -> str | None:
    header = request.headers.get("authorization", "")
    if header[:7].lower() == "bearer ":
        return header[7:].strip()
    if header.startswith("oqcs_auth="):
        return header[10:].strip()
    return None


def require(principal: Principal, scope: str) -> None:
    """An administrator may do everything but a worker's part."""
    if scope not in principal.scopes and (scope == "worker" or "admin" not in principal.scopes):
        raise ServiceError("the key lacks a scope", status=403, code="scope", value=" ".join(sorted(principal.scopes)), bound=scope)

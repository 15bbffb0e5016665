"""Who asks: a key in `Authorization: Bearer ...` (pyqpanda3: `oqcs_auth=...`) or a session, with its scopes and rate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from qpeft.errors import ServiceError
from qpeft.service.api.bodies import MAX_AT_ONCE, Pace
from qpeft.service.api.rate import Slots, TokenBucket, network_of
from qpeft.service.core import Service
from qpeft.service.ids import digest
from qpeft.service.store.schema import Row
from qpeft.service.store.sessions import digest_of

CACHE_S: Final = 2.0
CACHE_KEYS: Final = 10_000


@dataclass(frozen=True)
class Principal:
    """The holder of a key: its prefix, the user's id and name, and what the key may do."""

    prefix: str
    owner: str
    scopes: frozenset[str]
    name: str


class Authenticator:
    """Looks keys and sessions up by their SHA-256.

    A key is remembered for `CACHE_S` seconds, after which a revoked one is refused. An address that sent too many wrong keys is
    refused before anything is looked up, unless it sends a key or cookie that was good before: guesses shut out nobody else.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        settings = service.settings
        self.waits = Slots(settings.max_waits, "requests that wait")
        self.streams = Slots(settings.max_streams, "event streams")
        self.bodies, self.pace = Slots(MAX_AT_ONCE, "large bodies"), Pace()
        self._cache: dict[bytes, tuple[float, Principal]] = {}
        self._good: set[bytes] = set()
        """Digests of keys and cookies that were good when they were looked up last."""
        self._rate, self._wrong = TokenBucket(settings.rate_per_s), TokenBucket(settings.bad_key_rate_per_s)

    def forget(self) -> None:
        """Look every key up again: one was revoked, or a user was disabled."""
        self._cache.clear()

    async def principal(self, request: Request) -> Principal:
        """The holder of the request's key; ServiceError 401 or 429."""
        key = _key(request)
        if key is None:
            raise ServiceError("no key", status=401, code="no_key", hint="send the header Authorization: Bearer YOUR_KEY")
        principal = await self.holder(key, request)
        if not self._rate.hit(principal.owner):
            raise ServiceError("too many requests", status=429, code="rate", bound=f"{self._rate.per_s} a second", retry_after_s=1)
        return principal

    async def holder(self, key: str, request: Request) -> Principal:
        """Who has a key.

        Args:
            key: the key.
            request: the request, for the client's address.

        Raises:
            ServiceError: 401, the key is not in use; 429, the address sent too many wrong ones.
        """
        name = digest(key)
        cached = self._cached(name)
        if cached is not None:
            return cached
        address = self.admit(request, name)
        principal = await self.check(name)
        if principal is None:
            self._wrong.hit(address)
            raise ServiceError("not a key in use", status=401, code="bad_key")
        return principal

    async def session(self, cookie: str, request: Request) -> Principal | None:
        """Whose session a cookie is.

        Args:
            cookie: the cookie's value.
            request: the request, for the client's address.

        Returns:
            None when there is no such session.

        Raises:
            ServiceError: 429, the address sent too many wrong keys or cookies.
        """
        if not cookie:
            return None
        name = digest_of(cookie)
        address = self.admit(request, name)
        row = await self.service.ask(self.service.queries.session, name, self.service.clock.now())
        self._remember(name, row is not None)
        if row is None:
            self._wrong.hit(address)
            return None
        return _principal(row)

    def _remember(self, name: bytes, good: bool) -> None:
        if len(self._good) >= CACHE_KEYS:
            self._good.clear()
        self._good.add(name) if good else self._good.discard(name)

    def failed(self, address: str) -> None:
        """Count a failed attempt of an address."""
        self._wrong.hit(address)

    def admit(self, request: Request, name: bytes = b"") -> str:
        """The address that attempts are counted by.

        Args:
            request: the request, for the client's address.
            name: digest of the key or cookie; one that was good before is no guess.

        Raises:
            ServiceError: 429, the address has made too many attempts that failed.
        """
        address = network_of(request.client.host if request.client else "unknown")
        if name not in self._good and self._wrong.is_empty(address):
            bound = f"{self._wrong.per_s} a second"
            raise ServiceError("too many wrong keys from this address", status=429, code="rate", bound=bound, retry_after_s=1)
        return address

    @staticmethod
    def digest_of(request: Request) -> bytes:
        """The digest of a key that `principal` has accepted."""
        return digest(_key(request) or "")

    def _cached(self, name: bytes) -> Principal | None:
        cached = self._cache.get(name)
        return cached[1] if cached is not None and time.monotonic() - cached[0] < CACHE_S else None

    async def check(self, name: bytes) -> Principal | None:
        """The holder of the key with this digest, None when there is none in use."""
        if (cached := self._cached(name)) is not None:
            return cached
        row = await self.service.ask(self.service.queries.key, name, self.service.clock.now())
        self._remember(name, row is not None)
        if row is None:
            self._cache.pop(name, None)
            return None
        principal = _principal(row)
        if len(self._cache) >= CACHE_KEYS:
            self._cache.clear()
        self._cache[name] = (time.monotonic(), principal)
        return principal


def _principal(row: Row) -> Principal:
    return Principal(row.prefix, row.owner, frozenset(row.scopes.split()), row.name)


def _key(request: Request) -> str | None:
    header = request.headers.get("authorization", "")
    if header[:7].lower() == "bearer ":
        return header[7:].strip()
    if header.startswith("oqcs_auth="):
        return header[10:].strip()
    return None


def require(principal: Principal, scope: str) -> None:
    """Check that a key has a scope. An administrator may do everything but a worker's part.

    Args:
        principal: who asks.
        scope: "submit", "read", "admin" or "worker".

    Raises:
        ServiceError: 403, the key lacks it.
    """
    if scope not in principal.scopes and (scope == "worker" or "admin" not in principal.scopes):
        raise ServiceError("the key lacks a scope", status=403, code="scope", value=" ".join(sorted(principal.scopes)), bound=scope)

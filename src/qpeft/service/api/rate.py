"""Rate limits per user and address: requests per second, and waiting requests. Bounds of one API process.

The package `limits` counts windows by the wall clock: when that is set back, a key stays refused until it has caught up. It also
takes 5 us for a request (this 1 us) and a thread every 10 ms. Hence the bucket here, which is filled by the monotonic clock.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Final

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from qpeft.errors import ServiceError

NAMES: Final = 10_000


class TokenBucket:
    """For each name a bucket of `per_s` tokens that fills at `per_s` tokens a second."""

    def __init__(self, per_s: int) -> None:
        self.per_s = per_s
        self._buckets: dict[str, tuple[float, float]] = {}

    def _tokens(self, name: str, now: float) -> float:
        tokens, since = self._buckets.get(name, (float(self.per_s), now))
        return min(tokens + (now - since) * self.per_s, self.per_s)

    def is_empty(self, name: str) -> bool:
        """Whether `hit` would be refused now."""
        return self._tokens(name, time.monotonic()) < 1.0

    def hit(self, name: str) -> bool:
        """Take a token; False when there is none."""
        now = time.monotonic()
        tokens = self._tokens(name, now)
        if len(self._buckets) >= NAMES:
            self._buckets = {key: kept for key, kept in self._buckets.items() if now - kept[1] < 1.0}
        self._buckets[name] = (max(tokens - 1.0, 0.0), now)
        return tokens >= 1.0


class Slots:
    """For each name at most `bound` requests at the same time of a kind that waits (`what`)."""

    def __init__(self, bound: int, what: str) -> None:
        self.bound, self.what = bound, what
        self._taken: dict[str, int] = defaultdict(int)

    @contextlib.contextmanager
    def take(self, name: str) -> Iterator[None]:
        """Hold one slot of `name`. Raises ServiceError 429 when every one is taken."""
        if self._taken[name] >= self.bound:
            raise ServiceError(
                f"too many {self.what} of one user at the same time",
                status=429,
                code="rate",
                value=self._taken[name],
                bound=self.bound,
                hint="close some",
                retry_after_s=5,
            )
        self._taken[name] += 1
        try:
            yield
        finally:
            self._taken[name] -= 1
            if not self._taken[name]:
                del self._taken[name]


class EventStream(StreamingResponse):
    """Server-sent events. The slot is given back when the response has ended, or when it never began.

    Args:
        content: the events.
        slot: what is closed at the end.
    """

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], slot: contextlib.ExitStack) -> None:
        super().__init__(content, headers={"x-accel-buffering": "no"})
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they or the client end."""
        with self._slot:
            await super().__call__(scope, receive, send)


def network_of(address: str) -> str:
    """Unit in which attempts are counted: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address

"""JSON bodies that are long to decode. Decoding holds the interpreter: one user's bodies must not keep all others waiting.

8 MiB of small values take three seconds to decode, 8 MiB of circuits 50 ms. Values of a large body are counted first, outside of
the event loop. What a user's bodies are estimated to take is spread over time.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import numpy as np

from qpeft.errors import ServiceError

SMALL, LARGE = 1 << 13, 1 << 17  # bytes; the first take at most 3 ms to decode, the second 50 ms
SHARE: Final = 0.5  # of the event loop that decoding one user's bodies may take
MAX_AT_ONCE: Final = 16  # large bodies of one user
MAX_OBJECTS, MAX_LISTS = 100_000, 400_000  # of one body
OBJECT_S, LIST_S, BYTE_S = 1.2e-6, 5e-7, 3e-8
NAMES: Final = 10_000


class Pace:
    """For each name at most `share` of the time, one piece of work after the other."""

    def __init__(self, share: float = SHARE) -> None:
        self.share = share
        self._free: dict[str, float] = {}

    async def turn(self, name: str, seconds: float) -> None:
        """Wait until work may begin.

        Args:
            name: whose work it is.
            seconds: what it is estimated to take.
        """
        now = time.monotonic()
        if len(self._free) >= NAMES:
            self._free = {key: free for key, free in self._free.items() if free > now}
        start = max(now, self._free.get(name, now))
        self._free[name] = start + seconds / self.share
        if start > now:
            await asyncio.sleep(start - now)


def decode_s(body: bytes) -> float:
    """Seconds that decoding takes at most; brackets inside of strings count as well."""
    return body.count(b"{") * OBJECT_S + body.count(b"[") * LIST_S + len(body) * BYTE_S


def check_values(body: bytes) -> None:
    """Refuse JSON that would take long to decode. Raises ServiceError 422.

    Args:
        body: the body, which need not be valid.
    """
    text = np.frombuffer(body.replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)
    outside = np.bitwise_xor.accumulate((text == ord('"')).view(np.uint8)) == 0
    for what, bracket, bound in (("objects", "{", MAX_OBJECTS), ("lists", "[", MAX_LISTS)):
        n = int(np.count_nonzero((text == ord(bracket)) & outside))
        if n > bound:
            raise ServiceError(
                f"too many {what} in one body", status=422, code="values", value=n, bound=bound,
                hint="send several requests, or sweeps as float32 (application/octet-stream)",
            )  # fmt: skip

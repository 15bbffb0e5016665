"""Time that does not jump while a process lives."""

from __future__ import annotations

import time


class Clock:
    """Seconds since 1970 as the wall clock told them at the start, carried on by the monotonic clock.

    Someone setting the machine's clock therefore neither expires leases nor reorders what the service writes down.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def not_before(self, moment: float) -> None:
        """Go on from `moment` (seconds since 1970) if the machine's clock is behind it."""
        self._offset = max(self._offset, moment - time.monotonic())

    def now(self) -> float:
        """Seconds since 1970."""
        return time.monotonic() + self._offset

"""Quotas: how much of what a user may have or submit. A quota is a column of `owners`; null there is the setting of the service."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from qpeft.service.settings import Settings


@dataclass(frozen=True)
class Quota:
    """`bound` names the column of `owners` and the field of the API, `setting` the default, `used` what counts against it."""

    bound: str
    setting: str
    used: str
    title: str

    def of(self, owner: Any, settings: Settings) -> int | None:
        """The bound of a user (a row of `owners`); None is no bound."""
        own = getattr(owner, self.bound)
        found = getattr(settings, self.setting) if own is None else own
        return None if found is None else int(found)


OPEN_CIRCUITS: Final = Quota("max_open_circuits", "max_open_circuits", "open_circuits", "Circuits queued or running")
STORED_BYTES: Final = Quota("max_stored_bytes", "max_stored_bytes", "stored_bytes", "Bytes of parameters and results")
VENDOR_SHOTS: Final = Quota("max_vendor_shots", "user_vendor_shots", "vendor_shots", "Shots at vendors")
DAY_CIRCUITS: Final = Quota("max_day_circuits", "user_day_circuits", "day_circuits", "Circuits submitted today")
DAY_SHOTS: Final = Quota("max_day_shots", "user_day_shots", "day_shots", "Shots submitted today")
QUOTAS: Final = (OPEN_CIRCUITS, DAY_CIRCUITS, DAY_SHOTS, STORED_BYTES, VENDOR_SHOTS)
BOUNDS: Final = tuple(quota.bound for quota in QUOTAS)
"""Names of the quotas as columns, and as fields of requests."""


def used_of(owner: Any, today: Iterable[Any]) -> dict[str, int]:
    """What of each quota is used, by `Quota.used`.

    Args:
        owner: the user's row of `owners`.
        today: rows of `submitted` of this day; other users' are skipped.
    """
    row = next((row for row in today if row.owner == owner.id), None)
    submitted = {"day_circuits": 0 if row is None else int(row.circuits), "day_shots": 0 if row is None else int(row.shots)}
    return {quota.used: submitted[quota.used] if quota.used in submitted else int(getattr(owner, quota.used)) for quota in QUOTAS}


def day_of(moment: float) -> str:
    """The day (UTC) of a time in seconds since 1970, as `YYYY-MM-DD`."""
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


def seconds_left(moment: float) -> float:
    """Seconds from a time to the end of its day (UTC), when daily quotas begin anew."""
    return 86400.0 - moment % 86400.0

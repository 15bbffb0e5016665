"""The pages of `qpeft ui`: one file for a page, one line here. Their order is the menu's."""

from __future__ import annotations

from qpeft.ui.pages import compare, live, overview, run, start
from qpeft.ui.site import Address

ADDRESSES: list[Address] = [
    *overview.ADDRESSES,
    *compare.ADDRESSES,
    *start.ADDRESSES,
    *run.ADDRESSES,
    *live.ADDRESSES,
]

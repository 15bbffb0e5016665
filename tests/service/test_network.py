"""Hosts of their own for API processes and workers, in network namespaces; one of each is cut off and brought back."""

from __future__ import annotations

import argparse

import pytest
from benchmarks.service_network import measure_hosts

from tests.service.namespaces import missing

pytestmark = [pytest.mark.slow, pytest.mark.postgres]


@pytest.mark.skipif((why := missing()) is not None, reason=f"no network namespaces: {why}")
def test_hosts_that_are_cut_off_lose_nothing() -> None:
    """The API host that is cut off may be in a transaction: the database gives it up, and the others go on."""
    figures = measure_hosts(2, argparse.Namespace(jobs=600, clients=16, cut_s=8.0, after_s=1.0))
    assert figures["cut"] == ["api1", "worker1"]
    assert (figures["lost"], figures["duplicates"]) == (0, 0)
    assert figures["submit"]["p100_ms"] < 40_000

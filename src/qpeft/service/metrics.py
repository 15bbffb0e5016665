"""Prometheus metrics. With several API processes each writes to a shared folder and any of them answers for all."""

from __future__ import annotations

import functools
import os

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

REQUESTS = Counter("qpeft_requests_total", "HTTP requests", ["route", "method", "status"])
REQUEST_SECONDS = Histogram(
    "qpeft_request_seconds",
    "Seconds to answer",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
JOBS_FINISHED = Counter("qpeft_jobs_finished_total", "Jobs that workers completed", ["device", "outcome"])
JOBS_SUBMITTED = Counter("qpeft_jobs_submitted_total", "Jobs accepted", ["device"])
COMMITS = Counter("qpeft_commits_total", "Write transactions")
WRITES = Counter("qpeft_writes_total", "Write operations")
QUEUED = Gauge("qpeft_jobs_queued", "Jobs in the queue", ["device"], multiprocess_mode="mostrecent")
WORKERS = Gauge("qpeft_workers_alive", "Workers that were heard of", ["device"], multiprocess_mode="mostrecent")
VENDOR_UNRESOLVED = Gauge(
    "qpeft_vendor_tasks_unresolved", "Vendor tasks that may or may not have arrived", multiprocess_mode="mostrecent"
)


@functools.lru_cache(maxsize=4096)
def request_metrics(route: str, method: str, status: int) -> tuple[Counter, Histogram | None]:
    """The counter and the histogram of a kind of request. A stream has no histogram, since its duration is no latency.

    Args:
        route: method and path pattern of the route.
        method: HTTP method.
        status: HTTP status of the response.
    """
    return REQUESTS.labels(route, method, status), None if route == "GET /v1/events" else REQUEST_SECONDS.labels(route)


@functools.lru_cache(maxsize=256)
def submitted(device: str) -> Counter:
    """The counter of jobs accepted for a device."""
    return JOBS_SUBMITTED.labels(device)


def exposition() -> bytes:
    """All metrics in Prometheus' text format, summed over the API processes of this server."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)

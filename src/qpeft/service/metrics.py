"""Prometheus metrics of one API process."""

from __future__ import annotations

import functools

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

REQUESTS = Counter("qpeft_requests_total", "HTTP requests", ["route", "method", "status"])
REQUEST_SECONDS = Histogram(
    "qpeft_request_seconds",
    "Time to answer",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
JOBS_FINISHED = Counter("qpeft_jobs_finished_total", "Jobs that workers completed", ["device", "outcome"])
JOBS_SUBMITTED = Counter("qpeft_jobs_submitted_total", "Jobs accepted", ["device"])
QUEUED = Gauge("qpeft_jobs_queued", "Jobs in the queue", ["device"])
WORKERS = Gauge("qpeft_workers_alive", "Workers that were heard of")
COMMITS = Gauge("qpeft_commits", "Write transactions since the start")
WRITES = Gauge("qpeft_writes", "Write operations since the start")


@functools.lru_cache(maxsize=4096)
def request_metrics(route: str, method: str, status: int) -> tuple[Counter, Histogram | None]:
    """The counter and the histogram of a kind of request; a stream's duration is no latency."""
    return REQUESTS.labels(route, method, status), None if route == "GET /v1/events" else REQUEST_SECONDS.labels(route)


@functools.lru_cache(maxsize=256)
def submitted(device: str) -> Counter:
    return JOBS_SUBMITTED.labels(device)


def exposition() -> bytes:
    return generate_latest(REGISTRY)

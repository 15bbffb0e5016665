"""Refusals as `application/problem+json` (RFC 9457): what was wrong, the bound, the hint."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from qpeft.errors import QpeftError, ServiceError

log = logging.getLogger("qpeft.service")


def problem(error: ServiceError) -> Response:
    """The response of a refusal: its status, words, bound and hint, and when to come back."""
    status = error.status or 500
    content: dict[str, object] = {
        "type": f"urn:qpeft:problem:{error.code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": str(error),
        "code": error.code,
    }
    for name, value in (("value", error.value), ("bound", error.bound), ("hint", error.hint)):
        if value is not None:
            content[name] = value if isinstance(value, (int, float)) else str(value)[:1000]
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="qpeft"'
    return Response(msgspec.json.encode(content), status, headers, "application/problem+json")


def as_refusal(error: Exception) -> ServiceError:
    """Any error as a problem document. Unexpected errors are logged, and the user sees no details."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, QpeftError):
        return ServiceError(str(error), status=422)
    if isinstance(error, ClientDisconnect):
        return ServiceError("the client went away", status=400, code="disconnected")
    log.error("a request failed", exc_info=error)
    return ServiceError("the service failed on this request", status=500, code="internal", hint="report it with the time")

"""Structured logs: one JSON object a line on standard error. Keys are taken out of everything before it is written."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import structlog

KEY = re.compile(r"qk[0-9a-f]{10}_[0-9a-f]+")


def without_keys(_: Any, __: str, event: Any) -> Any:
    """A processor of structlog: no key ever reaches a log, whoever wrote it into a message.

    Args:
        _: the logger, not used.
        __: name of the method, not used.
        event: fields of the log entry.
    """
    return {
        name: KEY.sub(lambda found: found[0][:12] + "_...", value) if isinstance(value, str) else value
        for name, value in event.items()
    }


def _one_form(_: Any, __: str, event: Any) -> Any:
    """Without uvicorn's second copy of its message, meant for terminals."""
    event.pop("color_message", None)
    return event


def configure(level: int = logging.INFO) -> None:
    """Send the loggers of the service and of uvicorn to standard error as JSON lines."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _one_form,
            structlog.processors.format_exc_info,
            without_keys,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    for name in ("qpeft", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    logging.getLogger("qpeft.service.access").setLevel(logging.WARNING)

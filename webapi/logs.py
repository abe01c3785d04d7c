"""Logs of the web side: one JSON object a line, on stderr."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(level: str) -> None:
    """Send structlog's and the standard library's logs to stderr as JSON, from this level on."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = Stderr()
    handler.setFormatter(formatter())
    logger = logging.getLogger("stoker.web")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())


class Stderr(logging.Handler):
    """Writes to whatever stderr is at that moment; `lost` counts what could not be written."""

    lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as one line."""
        try:
            sys.stderr.write(self.format(record) + "\n")
        except (OSError, ValueError):
            # The standard library would print the exceptions being handled, and with them what a client sent.
            self.lost += 1


def formatter() -> logging.Formatter:
    """Return the formatter that makes a record one line of JSON."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )

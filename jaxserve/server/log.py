"""Structured logs: one JSON object a line on standard error. Prompts and outputs are in them only when asked for."""

import json
import logging
import sys
import time
from typing import Any, TextIO

logger = logging.getLogger("jaxserve.server")


class JsonFormatter(logging.Formatter):
    """Time, level, event, and whatever `extra={"fields": {...}}` brought."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class StandardError(logging.StreamHandler[TextIO]):
    """Writes to what is `sys.stderr` at that moment: whoever replaces it, and closes his own, loses no line."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # not StreamHandler's, which would keep the stream of now

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def set_up(level: str) -> None:
    """Send the server's and uvicorn's log lines to standard error, from `level` on; of OpenTelemetry's, warnings."""
    handler = StandardError()
    handler.setFormatter(JsonFormatter())
    for name in ("jaxserve", "uvicorn.error", "opentelemetry"):
        one = logging.getLogger(name)
        one.handlers = [handler]
        one.propagate = False
        one.setLevel(level.upper())
    for name in ("uvicorn.error", "opentelemetry"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger("jaxserve").level))

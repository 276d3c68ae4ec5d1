"""Owns log lines: a record as one line of JSON for a program, or as one line of text for a person."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from daguerre.telemetry.request import request_id

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(0x80, 0xA0))} | {
    code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def one_line(text: str) -> str:
    """The text with everything escaped that could forge a line or steer a terminal."""
    return text.translate(_ESCAPED)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says beside its message, by ``extra={"fields": {...}}``."""
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


class TextLine(logging.Formatter):
    """Time, level and message; tracebacks and the stacks of threads, which are ours, keep their lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The line, and what stands below it."""
        return "\n".join(filter(None, (super().format(record), fields_of(record).get("stacks"))))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The line itself; a prompt stands at its end, where the settings let it be logged."""
        prompt = fields_of(record).get("prompt")
        line = super().formatMessage(record)
        return one_line(line if prompt is None else f"{line}  {prompt!r}")


class JsonLine(logging.Formatter):
    """One object: time, level, logger, message, the request's id, and the record's own fields.

    Only ASCII is written: no reader, whatever it takes for the end of a line, sees one where there is none.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON, a traceback as one of its strings."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get() or None,
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)

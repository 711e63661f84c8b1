"""Log lines: one JSON object each, with the fields of a request where there are any."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

__all__ = ["JsonLines", "log_fields"]


class JsonLines(logging.Formatter):
    """Writes a record as one line of JSON; a traceback becomes the field ``trace``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = getattr(record, "fields", None)
        content = fields if isinstance(fields, dict) else {"message": record.getMessage()}
        line = {"time": moment.replace("+00:00", "Z"), "level": record.levelname.lower(), **content}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Fields:
    """Fields whose text is written when somebody reads it: `JsonLines` writes its own."""

    def __init__(self, fields: dict[str, object]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        return json.dumps(self._fields, default=str)


def log_fields(logger: logging.Logger, fields: dict[str, object]) -> None:
    """Log the fields of a request as one line."""
    logger.info("%s", _Fields(fields), extra={"fields": fields})

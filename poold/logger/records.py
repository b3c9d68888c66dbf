"""Makes the log's lines from poold's own records, from children's records and from printed text.

A handler can write anything into the pipe of its output. No text from that pipe becomes a line
unchanged. A record from that pipe must be one of the few that children write, and its line says so
(`by=child`). All other text is logged as text that a handler has printed.
"""

import json
from typing import Any

from poold.log import RECORD, Log

_RECORD = RECORD.encode()
# The events of children that user code can forge. Each has the level given here, whatever level the
# record claims.
EVENTS = {
    "accept_error": "warning",
    "connection_not_closed": "debug",
    "handler_failed": "error",
    "handler_import_failed": "error",
    "pages_not_prefaulted": "info",
    "scrape_failed": "error",
    "scraper_dropped": "warning",
    "worker_failed": "error",
}
FIELDS = ("session", "peer", "listener", "error", "reason", "suppressed", "traceback")


class LineLog(Log):
    """A log that keeps its lines until `take` returns them."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[bytes] = []

    def put(self, line: bytes) -> bool:
        """Keep a line."""
        self._lines.append(line)
        return True

    def take(self) -> list[bytes]:
        """Return the lines since the last call."""
        lines, self._lines = self._lines, []
        return lines


def record_own(log: LineLog, line: bytes) -> None:
    """Log a line of a process without user code.

    A record is a finished line. Any other text comes from a fault, such as the last output of a
    failing interpreter.
    """
    if line.startswith(_RECORD) and _is_text(line[1:]):
        log.put(line[1:] + b"\n")
    else:
        log.warning("stray_output", line=_decode(line))


def record_output(log: LineLog, line: bytes) -> None:
    """Log a line of a process with user code."""
    record = _parse_record(line[1:]) if line.startswith(_RECORD) else None
    if record is None:
        log.info("handler_output", line=_decode(line))
        return
    event, fields = record
    write = {"debug": log.debug, "info": log.info, "warning": log.warning, "error": log.error}[EVENTS[event]]
    write(event, **fields, by="child")


def _is_text(line: bytes) -> bool:
    try:
        return line.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _decode(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")


def _parse_record(data: bytes) -> tuple[str, dict[str, Any]] | None:
    """Return event and fields of a record that children may write, or None."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("event"), str) or found["event"] not in EVENTS:
        return None
    known = {key: found[key] for key in FIELDS if key in found}
    if not all(isinstance(value, str | int | float) for value in known.values()):
        return None
    return found["event"], known

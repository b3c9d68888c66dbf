"""What a line means: poold's own, a child's word, or what a handler printed. Makes the lines of the log.

Whoever has the pipe of a handler's output can write anything into it. So nothing from there becomes a line as it is: a record may only be
one of the few that children write, and says that it is a child's word (`by=child`); everything else is text that a handler printed.
"""

import json
from typing import Any

from poold.log import RECORD, Log

_RECORD = RECORD.encode()
# What children may say that run user code, or whose user does, and how grave it is: not as they say.
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


class Recorder(Log):
    """A log whose lines are kept until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[bytes] = []

    def put(self, line: bytes) -> bool:
        """Keep a line."""
        self._lines.append(line)
        return True

    def take(self) -> list[bytes]:
        """Return the lines since the last time."""
        lines, self._lines = self._lines, []
        return lines


def note_own(log: Recorder, line: bytes) -> None:
    """Make a line of what a process without user code wrote: a record is one already, anything else is a fault's own words."""
    if line.startswith(_RECORD) and _is_text(line[1:]):
        log.put(line[1:] + b"\n")
    else:
        log.warning("stray_output", line=_text(line))


def note_output(log: Recorder, line: bytes) -> None:
    """Make a line of what a process with user code wrote."""
    record = _record(line[1:]) if line.startswith(_RECORD) else None
    if record is None:
        log.info("handler_output", line=_text(line))
        return
    event, fields = record
    say = {"debug": log.debug, "info": log.info, "warning": log.warning, "error": log.error}[EVENTS[event]]
    say(event, **fields, by="child")


def _is_text(line: bytes) -> bool:
    try:
        return line.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")


def _record(data: bytes) -> tuple[str, dict[str, Any]] | None:
    """Return event and fields of a record that a child may have written, None for any other."""
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

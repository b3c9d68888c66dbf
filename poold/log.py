"""One event a line on stderr: text (logfmt) or JSON, the same from master, mold and worker.

Written without `logging`, because the mold loads this file and every worker would pay for what it imports. It must never
block and never raise: a line that the stream does not take at once is dropped and counted in `dropped`. O_NONBLOCK is not
used, because it would belong to everybody who shares the stream (open(2), "open file description").

Event names are part of what poold promises, like metric names. Events that a peer can cause at will are limited (`LIMITED`).
"""

from __future__ import annotations

import os
import stat
import time
from select import POLLOUT, poll

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from typing import Any

LEVELS = {"debug": 7, "info": 6, "warning": 4, "error": 3}

# name → lines in `WINDOW` seconds; the next line that is let through says how many were not.
WINDOW = 10.0
LIMITED = {
    "accept_error": 5,
    "child_failed": 50,
    "client_gone": 50,
    "exec_failed": 5,
    "handover_refused": 5,
    "protocol_error": 10,
    "worker_failed": 10,
    "worker_silent": 10,
    "connection_refused": 10,
    "control_refused": 10,
    "handler_failed": 50,
    "session_ended": 50,
    "spawn_failed": 5,
}

FIELD_MAX = 256
# A pipe takes this much in one piece or not at all (pipe(7), PIPE_BUF).
LINE_MAX = 4096
TRACEBACK_MAX = 8192
RWF_NOWAIT = 8  # os.RWF_NOWAIT, missing where the C library of the build was older


class Log:
    """A writer of events to one descriptor."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._json = False
        self._threshold = LEVELS["info"]
        self.journal = False
        self._windows: dict[str, list[float]] = {}
        self._poll = poll()
        self._poll.register(fd, POLLOUT)
        self._nowait = True
        self._torn = False
        self.dropped = 0

    def configure(self, *, format: str, level: str, journal: bool | None = None) -> None:
        """Set the format ("text" or "json") and the least level that is written.

        `journal` says whether the stream is the journal's, which wants priorities and has its own time; None: find out.
        """
        self._json = format == "json"
        self._threshold = LEVELS[level]
        self.journal = is_journal(self._fd) if journal is None else journal
        try:
            mode = os.fstat(self._fd).st_mode
        except OSError:
            mode = 0
        self._nowait = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)

    def debug(self, event: str, **fields: Any) -> None:
        """Write an event for somebody who looks for a fault in poold."""
        if self._threshold >= 7:
            self._event(event, "debug", fields)

    def info(self, event: str, **fields: Any) -> None:
        """Write an event of normal life."""
        if self._threshold >= 6:
            self._event(event, "info", fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Write an event that an operator should know of."""
        if self._threshold >= 4:
            self._event(event, "warning", fields)

    def error(self, event: str, **fields: Any) -> None:
        """Write an event that an operator should act on."""
        self._event(event, "error", fields)

    def _event(self, event: str, level: str, fields: dict[str, Any]) -> None:
        limit = LIMITED.get(event)
        if limit is not None:
            suppressed = self._over(event, limit)
            if suppressed < 0:
                return
            if suppressed:
                fields["suppressed"] = suppressed
        now = time.time()
        if self._json:
            line = _as_json(now, level, event, fields)
        else:
            line = _as_text(None if self.journal else now, level, event, fields)
        if self.journal:
            line = f"<{LEVELS[level]}>{line}"
        self.write(line.encode("utf-8", "backslashreplace") + b"\n")

    def _over(self, event: str, limit: int) -> int:
        """Return -1 when the event is over its limit, else how many were held back before it."""
        now = time.monotonic()
        window = self._windows.setdefault(event, [now, 0, 0])
        if now - window[0] >= WINDOW:
            held_back = int(window[2])
            window[:] = [now, 1, 0]
            return held_back
        if window[1] >= limit:
            window[2] += 1
            return -1
        window[1] += 1
        return 0

    def write(self, line: bytes) -> None:
        """Write one whole line now, or drop it; the line after one that went out in part starts on a line of its own."""
        if self._torn:
            line = b"\n" + line
        try:
            if self._nowait:
                try:
                    written = os.pwritev(self._fd, [line], -1, RWF_NOWAIT)
                except OSError as error:
                    if isinstance(error, BlockingIOError):
                        raise
                    # EOPNOTSUPP, ENOSYS or ESPIPE: this kernel cannot say "now or never" on this stream.
                    self._nowait = False
                    written = self._write_if_ready(line)
            else:
                written = self._write_if_ready(line)
        except OSError:
            # The stream is full, closed or its disk is: there is nowhere left to say so but the counter.
            written = 0
        self._torn = 0 < written < len(line) or (self._torn and not written)
        if written < len(line):
            self.dropped += 1

    def _write_if_ready(self, line: bytes) -> int:
        ready = self._poll.poll(0)
        if not ready or not ready[0][1] & POLLOUT:
            return 0
        return os.write(self._fd, line)


def trace(error: BaseException) -> str:
    """Return an error's traceback as text."""
    import traceback  # only who has an error to tell pays for it

    return "".join(traceback.format_exception(error))


def is_journal(fd: int) -> bool:
    """Say whether the descriptor is the journal's own stream, by JOURNAL_STREAM (systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def printable(text: str, limit: int = FIELD_MAX) -> str:
    """Return the text with everything that is not printable escaped, and at most `limit` characters of it.

    A peer's text could otherwise end a line, or move the cursor of whoever reads the log.
    """
    text = text[: limit + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _as_text(now: float | None, level: str, event: str, fields: dict[str, Any]) -> str:
    parts = [level, event] if now is None else [_stamp(now), level, event]
    for key, value in fields.items():
        if value is None:
            continue
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        text = printable(text, TRACEBACK_MAX if key == "traceback" else FIELD_MAX)
        if not text or any(c in ' "=' for c in text):
            text = '"' + text.replace('"', "'") + '"'
        parts.append(f"{key}={text}")
    return " ".join(parts)


def _as_json(now: float, level: str, event: str, fields: dict[str, Any]) -> str:
    import json  # only who asked for JSON pays for it

    record: dict[str, Any] = {"time": _stamp(now), "level": level, "event": event}
    for key, value in fields.items():
        if value is None:
            continue
        if isinstance(value, float):
            record[key] = round(value, 6)
        elif isinstance(value, int):
            record[key] = value
        else:
            record[key] = printable(str(value), TRACEBACK_MAX if key == "traceback" else FIELD_MAX)
    return json.dumps(record, ensure_ascii=False)


def _stamp(now: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"


log = Log()

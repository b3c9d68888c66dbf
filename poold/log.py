"""Writes the log, one event a line, as text (logfmt) or JSON, in each of poold's processes.

The module does without `logging`: the mold loads this file, and every worker would carry the memory
of what this file imports. A write never blocks and never raises. A line that the stream does not
take at once is dropped and counted in `dropped`. O_NONBLOCK is not used, because the flag would
apply to every process that shares the stream (open(2), "open file description").

A line is printable text of at most `LINE_MAX` bytes. A pipe takes such a line in one piece or not
at all (pipe(7), PIPE_BUF), so that lines of two writers cannot mix. On a pipe to the logger
(`poold.logger`) each record begins with `RECORD`, which tells a record from any other output. A
process with user code writes its records as JSON ("raw"), and the logger makes lines of them.

Operators rely on the names of events as on the names of metrics. Events that a peer can cause as
often as the peer likes are limited (`LIMITED`).
"""

from __future__ import annotations

import os
import stat
import time
from select import POLLOUT, poll

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from collections.abc import Callable
    from typing import Any

LEVELS = {"debug": 7, "info": 6, "warning": 4, "error": 3}

# The most lines of an event in `WINDOW` seconds. A later line gives the number of lines left out.
WINDOW = 10.0
LIMITED = {
    "accept_error": 5,
    "child_failed": 50,
    "child_not_signalled": 10,
    "exec_failed": 5,
    "handover_refused": 5,
    "protocol_error": 10,
    "worker_failed": 10,
    "worker_silent": 10,
    "connection_refused": 10,
    "control_refused": 10,
    "scrape_failed": 5,
    "scraper_dropped": 5,
    "spawn_failed": 5,
}

FIELD_MAX = 256
LINE_MAX = 4096
# The most characters of an ordinary field, and of a field of `LONG`. A line takes the first pair
# with which the whole line fits into `LINE_MAX`.
LIMITS = ((FIELD_MAX, 3300), (FIELD_MAX, 2000), (FIELD_MAX, 900), (96, 300), (24, 60), (4, 8))
# Fields that may be long. Of a traceback the end is kept, because the end names the error.
LONG = ("traceback", "line")
TRACEBACK_MAX = 8192
RWF_NOWAIT = 8  # os.RWF_NOWAIT, which a Python built with an older C library lacks
# The record separator: RFC 7464 puts this character before each JSON text in a stream.
RECORD = "\x1e"


class Window:
    """The count of one event's lines since `start`: written (`passed`) and left out (`held`).

    `level` is the level of the first line.
    """

    __slots__ = ("held", "level", "passed", "start")

    def __init__(self, start: float, level: str) -> None:
        self.start = start
        self.level = level
        self.passed = 0
        self.held = 0


class Log:
    """Writes events to one descriptor."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._format = "text"
        self._threshold = LEVELS["info"]
        self.journal = False
        self.framed = False
        self._call_later: Callable[[float, Callable[[], object]], object] | None = None
        self._windows: dict[str, Window] = {}
        self._poll = poll()
        self._poll.register(fd, POLLOUT)
        self._nowait = True
        self._terminal = False
        self._torn = False
        self.dropped = 0
        # The dropped lines that no `log_dropped` has reported yet.
        self._unreported = 0

    def configure(self, *, format: str, level: str, journal: bool | None = None, framed: bool | None = None) -> None:
        """Set the format ("text", "json" or "raw") and the lowest level that is written.

        `journal` says whether the lines go to the journal. Such lines get a priority and no time,
        because the journal adds its own. None: ask the environment (`is_journal`). `framed` says
        whether the lines go through the logger. None: as before.
        """
        self._format = format
        self._threshold = LEVELS[level]
        if journal is not None:
            self.journal = journal
        elif not self.framed:
            self.journal = is_journal(self._fd)
        self.frame(on=self.framed if framed is None else framed)

    def frame(self, *, on: bool) -> None:
        """Set whether the descriptor is a pipe to the logger, and look at the kind of its file."""
        self.framed = on
        try:
            mode = os.fstat(self._fd).st_mode
        except OSError:
            mode = 0
        self._nowait = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        self._terminal = stat.S_ISCHR(mode) and os.isatty(self._fd)

    def debug(self, event: str, **fields: Any) -> None:
        """Write an event that helps to find a fault in poold."""
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
            suppressed = self._count_line(event, level, limit)
            if suppressed < 0:
                return
            if suppressed:
                fields["suppressed"] = suppressed
        self._write(event, level, fields)

    def _write(self, event: str, level: str, fields: dict[str, Any]) -> None:
        if self._unreported and self.put(self._format_line("log_dropped", "warning", {"lines": self._unreported})):
            self._unreported = 0
        if not self.put(self._format_line(event, level, fields)):
            self.dropped += 1
            self._unreported += 1

    def _format_line(self, event: str, level: str, fields: dict[str, Any]) -> bytes:
        """Return the line of an event, with the fields cut to fit into `LINE_MAX`."""
        now = time.time()
        prefix = (RECORD if self.framed else "") + (f"<{LEVELS[level]}>" if self.journal and self._format != "raw" else "")
        line = b""
        for limits in LIMITS:
            if self._format == "text":
                text = _format_text(None if self.journal else now, level, event, fields, limits, terminal=self._terminal)
            else:
                text = _format_json(now, level, event, fields, limits, raw=self._format == "raw")
            line = f"{prefix}{text}\n".encode("utf-8", "backslashreplace")
            if len(line) <= LINE_MAX:
                break
        return line

    def _count_line(self, event: str, level: str, limit: int) -> int:
        """Return -1 if the event is over its limit, else the number of lines held back before."""
        now = time.monotonic()
        window = self._windows.get(event)
        if window is None or now - window.start >= WINDOW:
            held = 0 if window is None else window.held
            self._windows[event] = window = Window(now, level)
            window.passed = 1
            return held
        if window.passed < limit:
            window.passed += 1
            return 0
        window.held += 1
        if window.held == 1 and self._call_later is not None:
            # One millisecond more: rounding may make the sum a little less than the window.
            self._call_later(window.start + WINDOW - now + 0.001, self.tell_held_back)
        return -1

    def use_timer(self, call_later: Callable[[float, Callable[[], object]], object]) -> None:
        """Take the event loop's timer: the number of held-back lines is then logged in time."""
        self._call_later = call_later

    def tell_held_back(self, *, all: bool = False) -> None:
        """Log how many lines were held back, for each event whose window is over or for `all`."""
        now = time.monotonic()
        for event, window in list(self._windows.items()):
            if window.held and (all or now - window.start >= WINDOW):
                del self._windows[event]
                self._write(event, window.level, {"suppressed": window.held})

    def put(self, line: bytes) -> bool:
        """Write one whole line now or not at all. Return whether the line is written.

        The stream may take a part of a line. The next line then begins with a line break.
        """
        if self._torn:
            line = b"\n" + line
        try:
            if self._nowait:
                try:
                    written = os.pwritev(self._fd, [line], -1, RWF_NOWAIT)
                except OSError as error:
                    if isinstance(error, (BlockingIOError, BrokenPipeError)):
                        raise
                    # EOPNOTSUPP, ENOSYS or ESPIPE: this kernel has no RWF_NOWAIT for this stream.
                    self._nowait = False
                    written = self._write_if_ready(line)
            else:
                written = self._write_if_ready(line)
        except OSError:
            # The stream or its disk is full, or the stream is closed. Only the counter can tell.
            written = 0
        self._torn = 0 < written < len(line) or (self._torn and not written)
        return written == len(line)

    def _write_if_ready(self, line: bytes) -> int:
        ready = self._poll.poll(0)
        if not ready or not ready[0][1] & POLLOUT:
            return 0
        return os.write(self._fd, line)


def trace(error: BaseException) -> str:
    """Return an error's traceback as text.

    The result is the error alone where this process may not read the standard library, for example
    after a change of user.
    """
    try:
        import traceback  # only a process with an error loads the module
    except ImportError:
        return f"{type(error).__name__}: {error}"
    return "".join(traceback.format_exception(error))


def is_journal(fd: int) -> bool:
    """Return whether JOURNAL_STREAM names this descriptor's file (systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def printable(text: str, limit: int = FIELD_MAX, *, tail: bool = False, quoted: str = "") -> str:
    """Return at most `limit` characters of the text, with unprintable characters escaped.

    A peer's text could otherwise end a line, or move the cursor of a terminal that shows the log.
    With `tail` the end of the text is kept, else the beginning. The characters in `quoted` get a
    backslash. An escape is never cut.
    """
    cut = len(text) > limit
    if cut:
        text = text[-limit:] if tail else text[:limit]
    if text.isprintable() and not any(c in text for c in quoted):
        if not cut:
            return text
        return "…" + text[1:] if tail else text[:-1] + "…"
    pieces = ["\\" + c if c in quoted else c if c.isprintable() else _escape(c) for c in text]
    length = sum(map(len, pieces))
    cut = cut or length > limit
    while length > limit - cut:
        length -= len(pieces.pop(0 if tail else -1))
    return ("…" if cut and tail else "") + "".join(pieces) + ("…" if cut and not tail else "")


def _escape(c: str) -> str:
    """Return a character as an escape of a Python string.

    Python's own codec is a file of the standard library, which a process may be unable to read
    after a change of user.
    """
    number = ord(c)
    if number < 0x100:
        return _ESCAPES.get(c) or f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: str) -> str:
    """Return a text for a terminal: line breaks are kept, other unprintable characters escaped."""
    return "\n".join(printable(line, len(line) * 10) for line in text.split("\n"))


def _field_limit(key: str, limits: tuple[int, int]) -> tuple[int, bool]:
    """Return the most characters of a field, and whether the field's end is kept."""
    return limits[key in LONG], key == "traceback"


def _format_text(now: float | None, level: str, event: str, fields: dict[str, Any], limits: tuple[int, int], *, terminal: bool) -> str:
    parts = [level, event] if now is None else [_timestamp(now), level, event]
    below = ""
    for key, value in fields.items():
        if value is None:
            continue
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        limit, tail = _field_limit(key, limits)
        if terminal and key == "traceback":
            # At a terminal the traceback keeps its lines, below the event.
            below = "\n" + escaped(text[-limit:].rstrip("\n"))
            continue
        if not text or not text.isprintable() or any(c in text for c in ' "=\\'):
            text = '"' + printable(text, limit, tail=tail, quoted='"\\') + '"'
        else:
            text = printable(text, limit, tail=tail)
        parts.append(f"{key}={text}")
    return " ".join(parts) + below


def _format_json(now: float, level: str, event: str, fields: dict[str, Any], limits: tuple[int, int], *, raw: bool) -> str:
    import json  # only a log in JSON loads the module

    record: dict[str, Any] = {"time": _timestamp(now), "level": level, "event": event}
    for key, value in fields.items():
        if value is None:
            continue
        limit, tail = _field_limit(key, limits)
        if isinstance(value, float) and abs(value) < float("inf"):
            record[key] = round(value, 6)
        elif isinstance(value, int) and abs(value) < 1 << 64:
            record[key] = value
        elif raw:
            # The logger escapes the text, because only the logger knows the format of the log.
            record[key] = str(value)[-limit:] if tail else str(value)[:limit]
        else:
            record[key] = printable(str(value), limit, tail=tail)
    return json.dumps(record, ensure_ascii=raw)


def _timestamp(now: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"


log = Log()

"""One event a line: text (logfmt) or JSON, the same from master, mold and worker.

Written without `logging`, because the mold loads this file and every worker would pay for what it imports. It must never
block and never raise: a line that the stream does not take at once is dropped and counted in `dropped`. O_NONBLOCK is not
used, because it would belong to everybody who shares the stream (open(2), "open file description").

A line is printable text and has at most `LINE_MAX` bytes, so that a pipe takes it in one piece or not at all (pipe(7), PIPE_BUF) and no
two writers' lines can mix. On a pipe to the logger (`poold.logger`) each record begins with `RECORD`, which tells it from whatever else
came there; processes with user code in them write records as JSON that the logger makes lines of ("raw").

Event names are part of what poold promises, like metric names. Events that a peer can cause at will are limited (`LIMITED`).
"""

from __future__ import annotations

import os
import stat
import time
from select import POLLOUT, poll

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Callable
    from typing import Any

LEVELS = {"debug": 7, "info": 6, "warning": 4, "error": 3}

# name → lines in `WINDOW` seconds; a later line says how many more there were.
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
# What an ordinary field may have, and one of `LONG`, in characters: the first pair with which the whole line has room is taken.
LIMITS = ((FIELD_MAX, 3300), (FIELD_MAX, 2000), (FIELD_MAX, 900), (96, 300), (24, 60), (4, 8))
# These may be long. Of a traceback the end is kept, which has the error.
LONG = ("traceback", "line")
TRACEBACK_MAX = 8192
RWF_NOWAIT = 8  # os.RWF_NOWAIT, missing where the C library of the build was older
# The record separator, with which RFC 7464 begins JSON texts in a stream.
RECORD = "\x1e"


class Window:
    """How many lines of an event there were since `start`, how many were held back, and what they were."""

    __slots__ = ("held", "level", "passed", "start")

    def __init__(self, start: float, level: str) -> None:
        self.start = start
        self.level = level
        self.passed = 0
        self.held = 0


class Log:
    """A writer of events to one descriptor.

    `later`, where there is somebody who knows the time, calls a function after so many seconds: what was held back is told then, should
    no further line of that event do it.
    """

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._format = "text"
        self._threshold = LEVELS["info"]
        self.journal = False
        self.framed = False
        self.later: Callable[[float, Callable[[], object]], object] | None = None
        self._windows: dict[str, Window] = {}
        self._poll = poll()
        self._poll.register(fd, POLLOUT)
        self._nowait = True
        self._terminal = False
        self._torn = False
        self.dropped = 0
        # Of these, those that no line has told of yet.
        self._untold = 0

    def configure(self, *, format: str, level: str, journal: bool | None = None, framed: bool | None = None) -> None:
        """Set the format ("text", "json" or "raw") and the least level that is written.

        `journal` says whether the lines go to the journal, which wants priorities and has its own time; None: find out. `framed` says
        whether they go there through the logger; None: as before.
        """
        self._format = format
        self._threshold = LEVELS[level]
        if journal is not None:
            self.journal = journal
        elif not self.framed:
            self.journal = is_journal(self._fd)
        self.frame(on=self.framed if framed is None else framed)

    def frame(self, *, on: bool) -> None:
        """Say whether the descriptor is a pipe to the logger from now on, and look at what it is."""
        self.framed = on
        try:
            mode = os.fstat(self._fd).st_mode
        except OSError:
            mode = 0
        self._nowait = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        self._terminal = stat.S_ISCHR(mode) and os.isatty(self._fd)

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
            suppressed = self._over(event, level, limit)
            if suppressed < 0:
                return
            if suppressed:
                fields["suppressed"] = suppressed
        self._write(event, level, fields)

    def _write(self, event: str, level: str, fields: dict[str, Any]) -> None:
        if self._untold and self.put(self._line("log_dropped", "warning", {"lines": self._untold})):
            self._untold = 0
        if not self.put(self._line(event, level, fields)):
            self.dropped += 1
            self._untold += 1

    def _line(self, event: str, level: str, fields: dict[str, Any]) -> bytes:
        """Return an event as it goes out, with as much of each field as there is room for."""
        now = time.time()
        before = (RECORD if self.framed else "") + (f"<{LEVELS[level]}>" if self.journal and self._format != "raw" else "")
        line = b""
        for limits in LIMITS:
            if self._format == "text":
                text = _as_text(None if self.journal else now, level, event, fields, limits, terminal=self._terminal)
            else:
                text = _as_json(now, level, event, fields, limits, raw=self._format == "raw")
            line = f"{before}{text}\n".encode("utf-8", "backslashreplace")
            if len(line) <= LINE_MAX:
                break
        return line

    def _over(self, event: str, level: str, limit: int) -> int:
        """Return -1 when the event is over its limit, else how many were held back before it."""
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
        if window.held == 1 and self.later is not None:
            # A moment more, because the sum may be a little less than the window.
            self.later(window.start + WINDOW - now + 0.001, self.tell_held_back)
        return -1

    def tell_held_back(self, *, all: bool = False) -> None:
        """Say of each event whose time is up how many lines were held back; with `all`, whatever the time."""
        now = time.monotonic()
        for event, window in list(self._windows.items()):
            if window.held and (all or now - window.start >= WINDOW):
                del self._windows[event]
                self._write(event, window.level, {"suppressed": window.held})

    def put(self, line: bytes) -> bool:
        """Write one whole line now, or not, and say which; the line after one that went out in part starts on a line of its own."""
        if self._torn:
            line = b"\n" + line
        try:
            if self._nowait:
                try:
                    written = os.pwritev(self._fd, [line], -1, RWF_NOWAIT)
                except OSError as error:
                    if isinstance(error, (BlockingIOError, BrokenPipeError)):
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
        return written == len(line)

    def _write_if_ready(self, line: bytes) -> int:
        ready = self._poll.poll(0)
        if not ready or not ready[0][1] & POLLOUT:
            return 0
        return os.write(self._fd, line)


def trace(error: BaseException) -> str:
    """Return an error's traceback as text; the error alone where this process may not read the standard library (another user's)."""
    try:
        import traceback  # only who has an error to tell pays for it
    except ImportError:
        return f"{type(error).__name__}: {error}"
    return "".join(traceback.format_exception(error))


def is_journal(fd: int) -> bool:
    """Say whether the descriptor is the journal's own stream, by JOURNAL_STREAM (systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def printable(text: str, limit: int = FIELD_MAX, *, tail: bool = False, quoted: str = "") -> str:
    """Return the text with everything that is not printable escaped, and at most `limit` characters of it, or of its `tail`.

    A peer's text could otherwise end a line, or move the cursor of whoever reads the log. `quoted` are characters that get a backslash. An
    escape is there whole or not at all.
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
    """Return a character as Python writes it; not by its codec, a file that may be closed to a process that has become another user."""
    number = ord(c)
    if number < 0x100:
        return _ESCAPES.get(c) or f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: str) -> str:
    """Return text of several lines for a terminal: its line breaks, and everything else that is not printable escaped."""
    return "\n".join(printable(line, len(line) * 10) for line in text.split("\n"))


def _limit(key: str, limits: tuple[int, int]) -> tuple[int, bool]:
    """Return how many characters a field may have, and whether it is their end that counts."""
    return limits[key in LONG], key == "traceback"


def _as_text(now: float | None, level: str, event: str, fields: dict[str, Any], limits: tuple[int, int], *, terminal: bool) -> str:
    parts = [level, event] if now is None else [_stamp(now), level, event]
    below = ""
    for key, value in fields.items():
        if value is None:
            continue
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        limit, tail = _limit(key, limits)
        if terminal and key == "traceback":
            # Whoever sits there wants to read it.
            below = "\n" + escaped(text[-limit:].rstrip("\n"))
            continue
        if not text or not text.isprintable() or any(c in text for c in ' "=\\'):
            text = '"' + printable(text, limit, tail=tail, quoted='"\\') + '"'
        else:
            text = printable(text, limit, tail=tail)
        parts.append(f"{key}={text}")
    return " ".join(parts) + below


def _as_json(now: float, level: str, event: str, fields: dict[str, Any], limits: tuple[int, int], *, raw: bool) -> str:
    import json  # only who asked for JSON pays for it

    record: dict[str, Any] = {"time": _stamp(now), "level": level, "event": event}
    for key, value in fields.items():
        if value is None:
            continue
        limit, tail = _limit(key, limits)
        if isinstance(value, float) and abs(value) < float("inf"):
            record[key] = round(value, 6)
        elif isinstance(value, int) and abs(value) < 1 << 64:
            record[key] = value
        elif raw:
            # The logger escapes it once it knows for what.
            record[key] = str(value)[-limit:] if tail else str(value)[:limit]
        else:
            record[key] = printable(str(value), limit, tail=tail)
    return json.dumps(record, ensure_ascii=raw)


def _stamp(now: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"


log = Log()

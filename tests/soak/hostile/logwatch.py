"""Reads the daemon's log all the time: a file that grows, or a pipe, which must not stay full."""

import contextlib
import json
import os
import re
import threading
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

# What no attack may cause, in the words of the operator's handbook.
FATAL = ("loop_error", "giving_up", "exit_status_lost", "channel_lost", "listener_lost", "upgrade_failed")
# As sessions forge it (tests/handlers/hostile.py).
FORGED = "forged"
# Of a file that was made longer than what is written to it; nobody prints so many.
HOLE = bytes(65536)
TEXT = re.compile(r"^\S+Z (?:debug|info|warning|error) (\w+)")
LINES_KEPT = 400
# A file is emptied by this process when it has grown so much.
FILE_MAX = 64 << 20


def event_of(line: str) -> str:
    """Return the event that a line of the log tells of, "" if it is none of poold's."""
    if match := TEXT.match(line):
        return match[1]
    if line.startswith("{"):
        try:
            record = json.loads(line)
        except ValueError:
            return ""
        return str(record.get("event", "")) if isinstance(record, dict) else ""
    return ""


class LogWatch:
    """Reads one log until it is closed. `piped`: the file is a named pipe, and this is its only reader."""

    def __init__(self, path: Path, *, piped: bool) -> None:
        self._path = path
        self._piped = piped
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._rest = b""
        self._at = 0
        self._head = b""
        self._reading = threading.Lock()
        self._end = threading.Event()
        self.stalled = threading.Event()
        self.events: Counter[str] = Counter()
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._wrong: list[str] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            if not self.stalled.is_set():
                with self._reading:
                    self._read()

    def _read(self) -> None:
        while chunk := self._chunk():
            self._at += len(chunk)
            if not self._piped and HOLE in chunk:
                self._wrong.append("somebody has made a hole in the log")
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                self._take(line.decode(errors="replace")[:8192])
            self._rest = self._rest[-(1 << 20) :]

    def _chunk(self) -> bytes:
        try:
            if not self._piped:
                self._check_file()
            return os.read(self._fd, 1 << 20)
        except BlockingIOError:
            return b""

    def _check_file(self) -> None:
        """See that nobody has emptied the file or written over its beginning; empty it when it is large."""
        size = os.fstat(self._fd).st_size
        if size < self._at:
            self._wrong.append("somebody has emptied the log")
            self._start_anew()
        elif size > FILE_MAX and self._at == size:
            os.truncate(self._path, 0)
            self._start_anew()
        head = os.pread(self._fd, 64, 0)
        if not head.startswith(self._head):
            self._wrong.append("somebody has written over the beginning of the log")
        self._head = head

    def _start_anew(self) -> None:
        self._at, self._head = 0, b""
        os.lseek(self._fd, 0, os.SEEK_SET)

    def _take(self, line: str) -> None:
        self.lines.append(line)
        event = event_of(line)
        self.events[event] += bool(event)
        if event in FATAL:
            self._wrong.append(f"the log says {line[:2000]}")
        elif event == FORGED:
            self._wrong.append("a line that a session has printed passes for one of poold's own")

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """Be no reader for a while: whoever writes to the pipe gets EPIPE, and SIGPIPE."""
        self.stalled.set()
        with self._reading:
            if self._piped:
                os.close(self._fd)
            try:
                yield
            finally:
                if self._piped:
                    self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
                self.stalled.clear()

    def wrong(self) -> list[str]:
        """Return what has been seen since the last time, each once."""
        found, self._wrong = self._wrong, []
        return list(dict.fromkeys(found))

    def close(self) -> None:
        """Read what is there and stop."""
        self._end.set()
        self._thread.join()
        self._read()
        os.close(self._fd)

"""Judging settings at the start, in a process that ends, so that the master is not what loads what judging needs."""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from poold import sandbox
from poold.errors import ConfigError, Problem

STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
# A stop that was asked for before the judge began is for whoever has the settings, unless that takes longer than so many seconds.
PATIENCE = 5.0


class Signals(Protocol):
    """What notes signals: `take` returns and forgets those that have come, `note` gives one back; readable when there may be some."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...

    def take(self) -> set[int]:
        """Return the signals, and forget them."""
        ...

    def note(self, signum: int) -> object:
        """Take a signal as if it had just come."""
        ...


def verdict(data: bytes, file: Path | None, *, environ: Mapping[str, str], signals: Signals) -> dict[str, Any] | None:
    """Return `poold.settings.judge.verdict` of these bytes, None if this process was told to stop meanwhile: a name service may be silent.

    To be called before there is a second thread: a fork and not a fresh interpreter, which would take longer to start than to judge. Either
    way the process that judges has ended. Signals that come are there to be taken afterwards. Raises ConfigError when there is no verdict,
    OSError.
    """
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _judge(data, file, environ, writer, parent)
    os.close(writer)
    text = None
    try:
        text = _answer(reader, signals)
    finally:
        if text is None:
            os.kill(pid, signal.SIGKILL)
        os.close(reader)
        _, status = os.waitpid(pid, 0)
    if text is None:
        return None
    if status != 0:
        raise ConfigError([Problem("", f"the settings could not be judged: the process that did ended with {status:#x}")])
    found: dict[str, Any] = json.loads(text)
    return found


def _answer(reader: int, signals: Signals) -> bytes | None:
    """Return everything that comes out of a pipe up to its end, None if a stop is asked for first."""
    came, text = set(signals.take()), b""
    until = time.monotonic() + PATIENCE if came & STOPS else None
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(signals, select.POLLIN)
    try:
        while ready := dict(poll.poll(None if until is None else max(0.0, until - time.monotonic()) * 1000)):
            new = signals.take() if signals.fileno() in ready else set()
            came |= new
            if new & STOPS:
                return None
            if reader in ready:
                chunk = os.read(reader, 1 << 16)
                if not chunk:
                    return text
                text += chunk
        return None
    finally:
        for number in came:
            signals.note(number)


def _judge(data: bytes, file: Path | None, environ: Mapping[str, str], writer: int, parent: int) -> None:
    code = 1
    try:
        # It has every socket that was passed, and may wait for a name service: whoever is started next could not have them.
        sandbox.kill_with_parent(parent)
        # Or pydantic would look through every installed distribution for plugins, a tenth of the time that this takes.
        os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
        from poold.settings import judge  # what this process is for

        with open(writer, "wb") as answer:
            answer.write(json.dumps(judge.verdict(data, file, environ=environ)).encode())
        code = 0
    except BaseException as error:
        # Nothing may climb out into the code of the process that asked.
        from poold.log import escaped, trace

        print(escaped(trace(error)), file=sys.stderr, flush=True)
    finally:
        os._exit(code)

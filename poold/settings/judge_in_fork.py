"""Judging settings at the start of the master, in a forked process that ends.

The fork loads pydantic and what else the judging needs, so the master never does. `trial` judges
for a reload.
"""

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
# Seconds that the judge gets if a stop came before the judge began. With the settings the master
# ends in order; without them the master ends at once.
PATIENCE = 5.0


class Signals(Protocol):
    """The part of the master that notes signals (`poold.master.engine.signals.Inbox`)."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when a signal may have come."""
        ...

    def take(self) -> set[int]:
        """Return the signals that have come, and forget these signals."""
        ...

    def note(self, signum: int) -> object:
        """Note a signal as if the signal had just come."""
        ...


def judge_in_fork(data: bytes, file: Path | None, *, environ: Mapping[str, str], signals: Signals) -> dict[str, Any] | None:
    """Return the verdict of `poold.settings.judge`, or None when a signal asks for the end.

    The judge may wait for a silent name service. The fork has ended when this function returns.
    `signals` still has every signal that came. The caller has no second thread. A fork starts
    sooner than a fresh interpreter. Raises OSError, and ConfigError without a verdict.
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
    """Return all bytes of a pipe up to its end, or None if a stop is asked for first."""
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
    """Write the verdict as JSON to `writer`, and end this process."""
    code = 1
    try:
        # The fork holds every passed socket and may wait for a name service. If the fork outlived
        # the master, the next master could not bind those addresses.
        sandbox.kill_with_parent(parent)
        # Otherwise pydantic would search every installed distribution for plugins.
        os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
        from poold.settings import judge  # loads pydantic

        with open(writer, "wb") as answer:
            answer.write(json.dumps(judge.verdict(data, file, environ=environ)).encode())
        code = 0
    except BaseException as error:
        # An exception that left this function would run the master's code in the fork.
        from poold.log import escaped, trace

        print(escaped(trace(error)), file=sys.stderr, flush=True)
    finally:
        os._exit(code)

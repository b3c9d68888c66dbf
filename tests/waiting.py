"""Waiting for facts, with one generous deadline; nothing sleeps."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

DEADLINE = 30.0
T = TypeVar("T")


def eventually(check: Callable[[], T], what: str = "", *, seconds: float = DEADLINE) -> T:
    """Return the first true answer of `check`; fail when there is none in time."""
    end = time.monotonic() + seconds
    pause, delay = threading.Event(), 0.002
    while not (answer := check()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what or check}; last answer: {answer!r}")
        pause.wait(delay)
        delay = min(delay * 1.5, 0.1)
    return answer


def stays(fact: Callable[[], bool], what: str, *, seconds: float) -> None:
    """Fail when something that is true does not stay so for a while."""
    end = time.monotonic() + seconds
    eventually(lambda: not fact() or time.monotonic() >= end, what)
    assert fact(), f"it did not stay so: {what}"

"""What the service manager is told (sd_notify(3)): ready, reloading, stopping, how it goes, and that the loop still turns."""

import os
from collections.abc import MutableMapping, Sequence

from poold import systemd
from poold.master.engine.deadlines import Deadline
from poold.master.engine.loop import Loop

# The status line changes with every session; this is how often it is told at most, in seconds.
STATUS_EVERY = 1.0
# While draining, the manager is asked for more time this often, and for so much.
EXTEND_EVERY = 5.0
EXTEND_BY = 20.0


class Manager:
    """The service manager's end; without one, nothing is told."""

    def __init__(self, environ: MutableMapping[str, str], loop: Loop) -> None:
        """Take the variables that are meant for this process out of the environment: no child may ever see them."""
        self._address = environ.pop("NOTIFY_SOCKET", "")
        interval, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._loop = loop
        self._watchdog = 0.0
        if interval.isdigit() and (not pid or pid == str(os.getpid())):
            self._watchdog = int(interval) / 1_000_000
        self._text = ""
        self._sent_text = ""
        self._next_status: Deadline | None = None
        self._extending: Deadline | None = None

    @property
    def present(self) -> bool:
        """Say whether there is somebody who wants to know how it goes."""
        return bool(self._address)

    def _notify(self, **fields: str | int) -> None:
        systemd.notify(self._address, fds=(), **fields)

    def store(self, *, fds: Sequence[int] = (), **fields: str | int) -> None:
        """Tell what is to be kept of descriptors, and what is not any more."""
        systemd.notify(self._address, fds=fds, **fields)

    def ready(self) -> None:
        """Say that a connection would be served, and begin to say that the loop turns."""
        self._notify(READY=1, MAINPID=os.getpid(), STATUS=self._text)
        self._sent_text = self._text
        if self._watchdog:
            self._ping_watchdog()

    def _ping_watchdog(self) -> None:
        """Tell the watchdog, from a deadline of the loop itself: a loop that does not turn cannot. Twice as often as asked for."""
        self._notify(WATCHDOG=1)
        self._loop.after(self._watchdog / 2, self._ping_watchdog)

    def reloading(self) -> None:
        """Say that settings are being replaced; `ready_again` must follow (systemd.service(5), Type=notify-reload)."""
        self._notify(RELOADING=1, MONOTONIC_USEC=int(self._loop.clock() * 1_000_000))

    def ready_again(self) -> None:
        """Say that the reload has ended, whichever way."""
        self._notify(READY=1)

    def stopping(self) -> None:
        """Say that the end has begun, and ask for time as long as it lasts."""
        self._notify(STOPPING=1)
        self._extend()

    def _extend(self) -> None:
        if self._address:
            self._notify(EXTEND_TIMEOUT_USEC=int(EXTEND_BY * 1_000_000))
            self._extending = self._loop.after(EXTEND_EVERY, self._extend)

    def status(self, text: str) -> None:
        """Say how it goes, at most once in a while; the last word is always told."""
        self._text = text
        if self._address and self._next_status is None and text != self._sent_text:
            self._send_status()

    def _send_status(self) -> None:
        self._next_status = None
        if self._text != self._sent_text:
            self._sent_text = self._text
            self._notify(STATUS=self._text)
            self._next_status = self._loop.after(STATUS_EVERY, self._send_status)

"""Tells the service manager the state of the master (sd_notify(3)).

The messages say that the master is ready, reloads or stops, that the loop still turns, and a status
line.
"""

import os
from collections.abc import MutableMapping, Sequence

from poold import systemd
from poold.master.engine.deadlines import Deadline
from poold.master.engine.loop import Loop

# The status line changes with every session. This is the shortest time between two status lines, in
# seconds.
STATUS_EVERY = 1.0
# While the master stops, the time between two requests for more time, and the time that each asks
# for, in seconds.
EXTEND_EVERY = 5.0
EXTEND_BY = 20.0


class Manager:
    """The connection to the service manager. Without a service manager, nothing is sent."""

    def __init__(self, environ: MutableMapping[str, str], loop: Loop) -> None:
        """Take the variables for this process out of the environment.

        No child must get these variables.
        """
        self._address = environ.pop("NOTIFY_SOCKET", "")
        interval, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._reloading = False
        self._loop = loop
        self._watchdog = 0.0
        if interval.isdigit() and (not pid or pid == str(os.getpid())):
            self._watchdog = int(interval) / 1_000_000
        self._text = ""
        self._sent_text = ""
        self._next_status: Deadline | None = None

    @property
    def present(self) -> bool:
        """Say whether there is a service manager."""
        return bool(self._address)

    def _notify(self, **fields: str | int) -> None:
        systemd.notify(self._address, fds=(), **fields)

    def store(self, *, fds: Sequence[int] = (), **fields: str | int) -> None:
        """Put descriptors into the manager's store, or remove descriptors from there."""
        systemd.notify(self._address, fds=fds, **fields)

    def ready(self) -> None:
        """Say that the master serves connections, and begin to ping the watchdog."""
        self._notify(READY=1, MAINPID=os.getpid(), STATUS=self._text)
        self._sent_text = self._text
        if self._watchdog:
            self._ping_watchdog()

    def _ping_watchdog(self) -> None:
        """Tell the watchdog that the loop turns, twice as often as the manager asks for.

        A deadline of the loop calls this, so that a loop that does not turn sends nothing.
        """
        self._notify(WATCHDOG=1)
        self._loop.after(self._watchdog / 2, self._ping_watchdog)

    def reloading(self) -> None:
        """Say that the master replaces its settings.

        `ready_again` must follow (systemd.service(5), Type=notify-reload).
        """
        self._reloading = True
        self._notify(RELOADING=1, MONOTONIC_USEC=int(self._loop.clock() * 1_000_000))

    def ready_again(self) -> None:
        """Say that the reload has ended, applied or not."""
        self._reloading = False
        self._notify(READY=1)

    def stopping(self) -> None:
        """Say that the end has begun, and ask for more time as long as the end lasts.

        The end also ends a reload, and the manager hears of both in this order.
        """
        if self._reloading:
            self.ready_again()
        self._notify(STOPPING=1)
        self._extend()

    def _extend(self) -> None:
        if self._address:
            self._notify(EXTEND_TIMEOUT_USEC=int(EXTEND_BY * 1_000_000))
            self._loop.after(EXTEND_EVERY, self._extend)

    def status(self, text: str) -> None:
        """Send the status line, at most once in `STATUS_EVERY` seconds.

        The last line is always sent.
        """
        self._text = text
        if self._address and self._next_status is None and text != self._sent_text:
            self._send_status()

    def _send_status(self) -> None:
        self._next_status = None
        if self._text != self._sent_text:
            self._sent_text = self._text
            self._notify(STATUS=self._text)
            self._next_status = self._loop.after(STATUS_EVERY, self._send_status)

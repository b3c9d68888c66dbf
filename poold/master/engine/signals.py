"""The master's signals: one handler notes each signal that comes, and the loop acts on the signals.

The master gives no other function to signal.signal(), and this one does nothing but note the
signal. The wakeup descriptor (signal.set_wakeup_fd) wakes the loop. The bytes on the descriptor
have no meaning, so a full buffer loses nothing.
"""

import faulthandler
import signal
import socket

# These two groups keep their default dispositions. For the first, faulthandler prints where the
# fault happened. The second is the job control of a shell.
FATAL = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP, signal.SIGABRT}
JOB_CONTROL = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT}
UNCATCHABLE = {signal.SIGKILL, signal.SIGSTOP}


class Inbox:
    """The signals that have come since the loop last took them."""

    def __init__(self) -> None:
        self._pending: set[int] = set()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def open(self) -> None:
        """Set the disposition of every signal and unblock all signals (sigaction(2)).

        Signals without a meaning for the master get a handler, not SIG_IGN. The programs that
        children start would inherit an ignored signal.
        """
        # The program that called execve(2) in this process may have left an alarm running.
        signal.alarm(0)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in signal.valid_signals():
            if number in UNCATCHABLE:
                continue
            if number in FATAL or number in JOB_CONTROL:
                signal.signal(number, signal.SIG_DFL)
            else:
                signal.signal(number, self._on_signal)
        # The number and not sys.stderr: Python has no object for a standard error that was closed
        # at the start.
        faulthandler.enable(2)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def hold(self, *more: int) -> None:
        """Block all signals, and keep them pending for the next program.

        A blocked signal stays pending across execve(2), and so cannot end the next program while
        that program is loaded. The signals that were noted already, and `more`, are raised again
        and stay pending as well.
        """
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        for number in (*self.take(), *more):
            signal.raise_signal(number)

    def release(self) -> None:
        """Unblock the signals, because no program follows this one after all.

        Calling this again changes nothing.
        """
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _on_signal(self, signum: int, frame: object) -> None:
        self._pending.add(signum)

    def note(self, signum: int) -> None:
        """Have the loop act on this signal in the next turn, as if the signal had come again."""
        self._pending.add(signum)
        try:
            self._writer.send(b"\0")
        except BlockingIOError:
            # The buffer is full, so the wakeup descriptor is readable already.
            return

    def fileno(self) -> int:
        """Return the descriptor that is readable when a signal has come."""
        return self._reader.fileno()

    def take(self) -> set[int]:
        """Return the signals that have come, and forget them.

        The wakeup descriptor is emptied first: a signal that comes in between is then never missed.
        """
        try:
            self._reader.recv(65536)
        except BlockingIOError:
            # No signal has written a byte.
            pass
        if not self._pending:
            return self._pending
        taken, self._pending = self._pending, set()
        return taken

"""Signals of the master: one function notes which have come, the loop acts.

The function is the only one that is ever given to signal.signal() here, and it does nothing but note. The wakeup descriptor
(signal.set_wakeup_fd) only wakes: its bytes mean nothing, so a full buffer loses nothing.
"""

import faulthandler
import signal
import socket

# Left as they are: with faulthandler the first group says where it happened, and the second is a shell's business.
FATAL = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP, signal.SIGABRT}
JOB_CONTROL = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT}
UNCATCHABLE = {signal.SIGKILL, signal.SIGSTOP}


class Inbox:
    """Which signals have come since the loop last looked."""

    def __init__(self) -> None:
        self._pending: set[int] = set()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def open(self) -> None:
        """Give every signal its disposition, whatever this process was started with, and unblock all (sigaction(2)).

        A handler, not SIG_IGN, for those that mean nothing: an ignored signal would stay ignored in programs that children start.
        """
        # Whoever this process was before may have left one running.
        signal.alarm(0)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in signal.valid_signals():
            if number in UNCATCHABLE:
                continue
            if number in FATAL or number in JOB_CONTROL:
                signal.signal(number, signal.SIG_DFL)
            else:
                signal.signal(number, self._on_signal)
        # By number: where standard error was closed at the start, Python has no object for it.
        faulthandler.enable(2)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def hold(self, *more: int) -> None:
        """Keep every signal for the program that comes after this one, those that were noted already too, and `more`.

        What is blocked stays pending across execve(2), where what would end that program while it is loaded is pending too.
        """
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        for number in (*self.take(), *more):
            signal.raise_signal(number)

    def release(self) -> None:
        """Take signals again, because there is no program after this one; again changes nothing."""
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _on_signal(self, signum: int, frame: object) -> None:
        self._pending.add(signum)

    def note(self, signum: int) -> None:
        """Look at this signal again in the next turn, as if it had come once more."""
        self._pending.add(signum)
        try:
            self._writer.send(b"\0")
        except BlockingIOError:
            # The buffer is full of reasons to wake up already.
            return

    def fileno(self) -> int:
        """Return the descriptor that is readable when a signal has come."""
        return self._reader.fileno()

    def take(self) -> set[int]:
        """Return the signals that have come and forget them; empty the wakeup descriptor first, so that none is missed."""
        try:
            self._reader.recv(65536)
        except BlockingIOError:
            # Woken by something else.
            pass
        if not self._pending:
            return self._pending
        taken, self._pending = self._pending, set()
        return taken

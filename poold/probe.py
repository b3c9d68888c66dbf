"""A probe of the handler: a mold that is asked for nothing. Run by `poold check`, outside the master."""

import os
import select
import signal
import time
from collections.abc import Mapping

from poold import channel
from poold.channel import MoldWord
from poold.master.children.spawn import Launcher
from poold.master.children.streams import Streams
from poold.master.descriptors import limits
from poold.pages import PAGE
from poold.scoreboard import shared_memory
from poold.settings.config import Config, People

# What is kept of what the import prints; the rest is read and thrown away.
PRINTED_MAX = 64 << 10


def import_handler(config: Config, people: People, environ: Mapping[str, str]) -> tuple[str | None, str]:
    """Import the handler as a mold would, as the same user; return why it cannot be, None if it can, and what it printed.

    Raises OSError.
    """
    ours, theirs = channel.pair()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    fds = {"channel": theirs.fileno(), "phase": shared_memory("phase", PAGE)}
    try:
        launcher = Launcher(environ, limits(), Streams(writer))
        pid = launcher.mold(launcher.recipe(config, people), **fds)
    except OSError as error:
        ours.close()
        os.close(reader)
        return f"a mold cannot be started: {error}", ""
    finally:
        theirs.close()
        os.close(writer)
        os.close(fds["phase"])
    printed = Printed(reader)
    try:
        return _listen(ours, printed, config.timeouts.import_), printed.text()
    finally:
        ours.close()
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        while os.WIFSTOPPED(os.waitpid(pid, 0)[1]):
            # The import has made this process its tracer (ptrace(2), PTRACE_TRACEME): a stop was told before the end.
            continue


class Printed:
    """What comes out of a pipe, as much of it as anybody wants to read."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_blocking(fd, False)
        self._content = b""

    def read(self) -> bool:
        """Take what is there; say whether more may come."""
        try:
            chunk = os.read(self.fd, PRINTED_MAX)
        except BlockingIOError:
            return True
        self._content += chunk[: PRINTED_MAX - len(self._content)]
        return bool(chunk)

    def text(self) -> str:
        """Return all of it."""
        self.read()
        return self._content.decode("utf-8", "backslashreplace")


def _listen(ours: channel.Wire, printed: Printed, seconds: float) -> str | None:
    deadline = time.monotonic() + seconds
    readable = select.poll()
    readable.register(ours, select.POLLIN)
    readable.register(printed.fd, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        ready = [fd for fd, _ in readable.poll(left * 1000)]
        if printed.fd in ready and not printed.read():
            readable.unregister(printed.fd)
        if ours.fileno() not in ready:
            continue
        report = channel.receive_mold_report(ours)
        if report is None:
            return "the mold ended before the handler was imported"
        if report.word is MoldWord.FAILED:
            return report.text.partition("\n")[0]
        if report.word is MoldWord.READY:
            return None
    return f"the import took longer than timeouts.import ({seconds:g} s)"

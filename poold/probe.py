"""Imports the handler on trial, in a mold that gets no order.

`poold check` does this without a master.
"""

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
from poold.pages import PAGE_SIZE
from poold.scoreboard import shared_memory
from poold.settings.config import Config, People

# The most bytes that are kept of what the import prints. The rest is read and dropped.
PRINTED_MAX = 64 << 10


def import_handler(config: Config, people: People, environ: Mapping[str, str]) -> tuple[str | None, str]:
    """Import the handler in a mold, as the same user. Return the problem or None, and the output.

    The output is what the import has printed. Raises OSError.
    """
    mold_channel, mold_end = channel.make_pair()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    fds = {"channel": mold_end.fileno(), "phase": shared_memory("phase", PAGE_SIZE)}
    try:
        launcher = Launcher(environ, limits(), Streams(writer))
        pid = launcher.mold(launcher.recipe(config, people), **fds)
    except OSError as error:
        mold_channel.close()
        os.close(reader)
        return f"a mold cannot be started: {error}", ""
    finally:
        mold_end.close()
        os.close(writer)
        os.close(fds["phase"])
    printed = PrintedText(reader)
    try:
        return _await_import(mold_channel, printed, config.timeouts.import_), printed.text()
    finally:
        mold_channel.close()
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        while os.WIFSTOPPED(os.waitpid(pid, 0)[1]):
            # The import has made this process the mold's tracer (ptrace(2), PTRACE_TRACEME). The
            # kernel then reports a stop before the end.
            continue


class PrintedText:
    """Reads a pipe, and keeps the first `PRINTED_MAX` bytes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_blocking(fd, False)
        self._content = b""

    def read(self) -> bool:
        """Read what has come. Return whether more may come."""
        try:
            chunk = os.read(self.fd, PRINTED_MAX)
        except BlockingIOError:
            return True
        self._content += chunk[: PRINTED_MAX - len(self._content)]
        return bool(chunk)

    def text(self) -> str:
        """Return the kept bytes as text."""
        self.read()
        return self._content.decode("utf-8", "backslashreplace")


def _await_import(mold_channel: channel.Wire, printed: PrintedText, seconds: float) -> str | None:
    deadline = time.monotonic() + seconds
    readable = select.poll()
    readable.register(mold_channel, select.POLLIN)
    readable.register(printed.fd, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        ready = [fd for fd, _ in readable.poll(left * 1000)]
        if printed.fd in ready and not printed.read():
            readable.unregister(printed.fd)
        if mold_channel.fileno() not in ready:
            continue
        report = channel.receive_mold_report(mold_channel)
        if report is None:
            return "the mold ended before the handler was imported"
        if report.word is MoldWord.FAILED:
            return report.text.partition("\n")[0]
        if report.word is MoldWord.READY:
            return None
    return f"the import took longer than timeouts.import ({seconds:g} s)"

"""A probe of the handler: a mold that is asked for nothing. Run by `poold check`, outside the master."""

import os
import signal
import socket
import time
from collections.abc import Mapping

from poold import channel
from poold.channel import MoldWord
from poold.master.current import Current
from poold.master.descriptors import limits
from poold.master.spawn import Launcher
from poold.settings.people import People
from poold.settings.schema import Config


def import_handler(config: Config, people: People, environ: Mapping[str, str]) -> str | None:
    """Import the handler as a mold would, as the same user; return why it cannot be, None if it can."""
    ours, theirs = channel.pair()
    with ours:
        with theirs:
            try:
                pid = Launcher(environ, limits()).mold(Current(config, people), channel=theirs.fileno())
            except OSError as error:
                return f"a mold cannot be started: {error}"
        try:
            return _listen(ours, config.timeouts.import_)
        finally:
            ours.close()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _listen(ours: socket.socket, seconds: float) -> str | None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        ours.settimeout(left)
        try:
            report = channel.receive_mold_report(ours)
        except TimeoutError:
            break
        if report is None:
            return "the mold ended before the handler was imported"
        if report.word is MoldWord.FAILED:
            return report.text.partition("\n")[0]
        if report.word is MoldWord.READY:
            return None
    return f"the import took longer than timeouts.import ({seconds:g} s)"

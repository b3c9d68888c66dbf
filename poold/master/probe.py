"""A probe of the handler: a mold that is asked for nothing. Run by `poold check`, outside the master."""

import os
import signal
import time
from collections.abc import Mapping

from poold import channel
from poold.channel import MoldWord
from poold.master.descriptors import limits
from poold.master.spawn import Launcher
from poold.pages import PAGE
from poold.scoreboard import shared_memory
from poold.settings.config import Config, People


def import_handler(config: Config, people: People, environ: Mapping[str, str]) -> str | None:
    """Import the handler as a mold would, as the same user; return why it cannot be, None if it can."""
    ours, theirs = channel.pair()
    fds = {"channel": theirs.fileno(), "phase": shared_memory("phase", PAGE)}
    try:
        launcher = Launcher(environ, limits())
        pid = launcher.mold(launcher.recipe(config, people), **fds)
    except OSError as error:
        ours.close()
        return f"a mold cannot be started: {error}"
    finally:
        theirs.close()
        os.close(fds["phase"])
    try:
        return _listen(ours, config.timeouts.import_)
    finally:
        ours.close()
        os.kill(pid, signal.SIGKILL)
        while os.WIFSTOPPED(os.waitpid(pid, 0)[1]):
            # The import has made this process its tracer (ptrace(2), PTRACE_TRACEME): a stop was told before the end.
            continue


def _listen(ours: channel.Wire, seconds: float) -> str | None:
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

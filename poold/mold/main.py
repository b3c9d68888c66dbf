"""A mold's life: become the user, import the handler, then clone a worker for each order until the channel ends.

Started by the master as a fresh interpreter with `NAME=NUMBER` arguments, one for each descriptor it inherits: `channel`, `settings`
(a memory file with the JSON text of what it needs) and `phase` (see `poold.pages`). A master of an older version gives `activity` too.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
from functools import partial

from poold import __version__, arguments, channel, sandbox, stream
from poold.channel import MoldWord
from poold.log import TRACEBACK_MAX, log, trace
from poold.mold import clone
from poold.mold.orders import work_off
from poold.pages import PhaseView
from poold.title import set_title
from poold.worker import adapters
from poold.worker.main import Worker, nothing

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from typing import Any

SETTINGS_MAX = 16 << 20


class Mold:
    """What workers are cloned from, once the handler is loaded."""

    def __init__(self, end: channel.Wire, settings: dict[str, Any], fds: dict[str, int]) -> None:
        self._end = end
        self._settings = settings
        # Not said by an older master, whose upgrade this is.
        master = settings.get("master", os.getppid())
        self.worker = Worker(master=master, mold=end.fileno(), phase=PhaseView(fds["phase"]), settings=settings)
        for name in ("phase", "activity"):
            if name in fds:
                os.close(fds[name])
        self.alone = False

    def prepare(self) -> int:
        """Become the user and load the handler; return the number of threads. Whatever is raised says why there can be no worker."""
        # What is used before the first clone only is loaded now, after what each clone uses: that lies together, on a tenth fewer pages.
        from poold.mold.compact import compact
        from poold.mold.warmup import RUNS, warm_up

        settings, worker = self._settings, self.worker
        # The master raised its own limit (getrlimit(2)); programs that use select() rely on a low one.
        resource.setrlimit(resource.RLIMIT_NOFILE, tuple(settings["nofile"]))
        become_user(settings)
        sandbox.vanish_with(worker.master)
        for name in settings["own_variables"]:
            os.environ.pop(name, None)
        os.umask(settings["umask"])
        os.chdir(settings["working_directory"])
        sys.path.extend(settings["path"])
        if settings["preload"]:
            worker.handler = adapters.load(settings)
            # What was printed without the end of its line would be every worker's.
            stream.flush()
            clone.refuse_company()
            # The import may have changed what workers would share, and what ends this process with its master.
            signal.set_wakeup_fd(-1)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            sandbox.vanish_with(worker.master)
            # The signal of a timer of the import's has its default in a moment, which is the end of this process.
            for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
                signal.setitimer(timer, 0)
        # A signal that comes to a worker before it has set itself up must do what it does to any process.
        for number in altered_dispositions():
            signal.signal(number, nothing if number == signal.SIGPIPE else signal.SIG_DFL)
        warm_up(worker)
        clone.warm_up(RUNS)
        # A collection in a worker would write to every page it shares with its siblings (gc.freeze's documentation).
        gc.collect()
        gc.freeze()
        gc.disable()
        compact()
        threads = clone.threads()
        self.alone = threads == 1 and clone.CLONE_WORKS
        return threads

    def run(self) -> None:
        """Clone until the master closes the channel."""
        clone_worker = clone.clone_worker if self.alone else partial(clone.fork_worker, self.worker.master)
        work_off(self._end, clone_worker, self.worker)


def become_user(settings: dict[str, Any]) -> None:
    """Be the user, and have the user's variables, where this interpreter was not started like that (`poold.master.children.spawn`)."""
    if sandbox.become_identity(settings["identity"]) and "variables" in settings:
        os.environ.clear()
        os.environ.update(settings["variables"])
        sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))


def altered_dispositions() -> tuple[int, ...]:
    """Return the signals that the handler's import has caught or ignored, by the kernel's word (proc(5), SigIgn, SigCgt)."""
    mask = 0
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith((b"SigIgn:", b"SigCgt:")):
                mask |= int(line.split()[1], 16)
    return tuple(number for number in signal.valid_signals() if mask >> (number - 1) & 1)


def _settings(fd: int) -> dict[str, Any]:
    with open(fd, "rb") as file:
        settings: dict[str, Any] = json.loads(file.read(SETTINGS_MAX))
    return settings


def main() -> None:
    """Run a mold to its end; the exit status says nothing that the channel has not said."""
    sandbox.hide()
    fds = arguments.read(sys.argv[1:])
    # Python ignores SIGPIPE and SIGXFSZ and catches SIGINT; workers start with every disposition at its default. But a mold does not die of
    # what it says or the handler's import prints, should nobody read that: a worker takes this one back as its first act.
    signal.signal(signal.SIGPIPE, nothing)
    for number in (signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    clone.reset_internal_signals()
    for fd in fds.values():
        os.set_inheritable(fd, False)
    end = channel.wire(fds["channel"])
    set_title("mold")
    settings = _settings(fds["settings"])
    stream.install()
    # A master of another version does not say it, and has no logger.
    framed = settings.get("log_framed", False)
    form = "raw" if framed else settings["log_format"]
    log.configure(format=form, level=settings["log_level"], journal=settings["log_journal"], framed=framed)
    end.send(channel.mold_report(MoldWord.HELLO, text=__version__))
    mold = Mold(end, settings, fds)
    try:
        threads = mold.prepare()
    except BaseException as error:  # user code may raise anything, SystemExit included; the master must hear it
        text = trace(error)
        end.send(channel.mold_report(MoldWord.FAILED, text=f"{type(error).__name__}: {error}\n{text}"[:TRACEBACK_MAX]))
        sys.exit(1)
    if mold.alone:
        from poold.mold.prefault import provide
        from poold.mold.warmup import scout

        try:
            # Called here, because orders will be worked off as deep below: a scout's frames lie where a worker's do.
            pages = scout(mold.worker)
            if pages is not None:
                mold.worker.take_pages = provide(pages, partial(scout, mold.worker)) or mold.worker.take_pages
        except Exception as error:  # whatever it is, it costs time and nobody's session
            log.info("pages_not_prefaulted", reason=f"{type(error).__name__}: {error}")
    end.send(channel.mold_report(MoldWord.READY, number=threads))
    mold.run()

"""The life of a mold: become the user, import the handler, clone a worker for each order.

The master starts a mold as a fresh interpreter. The arguments have the form `NAME=NUMBER`, one for
each descriptor that the mold inherits. `channel` is the mold's end of the channel to the master.
`settings` is a memory file with the settings as JSON. `phase` is the phase page (`poold.pages`). A
master of an older version passes `activity` as well.

The mold ends when the master closes the channel.
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
from poold.worker.main import Worker, do_nothing

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from typing import Any

SETTINGS_MAX = 16 << 20


class Mold:
    """The mold: loads the handler, then clones a worker for each order."""

    def __init__(self, wire: channel.Wire, settings: dict[str, Any], fds: dict[str, int]) -> None:
        self._wire = wire
        self._settings = settings
        # A master of an older version does not send its pid.
        master_pid = settings.get("master", os.getppid())
        self.worker = Worker(master_pid=master_pid, mold_fd=wire.fileno(), phase=PhaseView(fds["phase"]), settings=settings)
        for name in ("phase", "activity"):
            if name in fds:
                os.close(fds[name])
        self.uses_clone = False

    def prepare(self) -> int:
        """Become the user and load the handler. Return the number of threads. Raises any error."""
        # Each clone writes to code that is loaded earlier. These modules run only in the mold and
        # are loaded last, so that the pages which a clone writes to lie together.
        from poold.mold.compact import compact
        from poold.mold.warmup import RUNS, warm_up

        settings, worker = self._settings, self.worker
        # The master has raised its own limit (getrlimit(2)). A program with select(2) needs a low
        # one.
        resource.setrlimit(resource.RLIMIT_NOFILE, tuple(settings["nofile"]))
        become_user(settings)
        sandbox.kill_with_parent(worker.master_pid)
        for name in settings["own_variables"]:
            os.environ.pop(name, None)
        os.umask(settings["umask"])
        os.chdir(settings["working_directory"])
        sys.path.extend(settings["path"])
        if settings["preload"]:
            worker.handler = adapters.load(settings)
            # Each worker would inherit, and print, a line that the import has begun.
            stream.flush()
            clone.refuse_company()
            # The import may have changed signal settings that workers would inherit, and the signal
            # that ends this process with the master.
            signal.set_wakeup_fd(-1)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            sandbox.kill_with_parent(worker.master_pid)
            # A timer of the import would end this process, once the loop below has reset its
            # signal.
            for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
                signal.setitimer(timer, 0)
        # A signal that comes before a worker's first act must do what it does to any process.
        for number in altered_dispositions():
            signal.signal(number, do_nothing if number == signal.SIGPIPE else signal.SIG_DFL)
        warm_up(worker)
        clone.warm_up(RUNS)
        # A collection in a worker would write to every page shared with the mold (gc.freeze).
        gc.collect()
        gc.freeze()
        gc.disable()
        compact()
        threads = clone.threads()
        self.uses_clone = threads == 1 and clone.CLONE_WORKS
        return threads

    def run(self) -> None:
        """Clone a worker for each order until the master closes the channel."""
        clone_worker = clone.clone_worker if self.uses_clone else partial(clone.fork_worker, self.worker.master_pid)
        work_off(self._wire, clone_worker, self.worker)


def become_user(settings: dict[str, Any]) -> None:
    """Become the user and take the user's variables, where the master has not done so already.

    `poold.master.children.spawn` says in which cases the master starts a mold with its own rights.
    """
    if sandbox.become_identity(settings["identity"]) and "variables" in settings:
        os.environ.clear()
        os.environ.update(settings["variables"])
        sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))


def altered_dispositions() -> tuple[int, ...]:
    """Return the signals that this process catches or ignores (proc(5), SigIgn and SigCgt)."""
    mask = 0
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith((b"SigIgn:", b"SigCgt:")):
                mask |= int(line.split()[1], 16)
    return tuple(number for number in signal.valid_signals() if mask >> (number - 1) & 1)


def _read_settings(fd: int) -> dict[str, Any]:
    with open(fd, "rb") as file:
        settings: dict[str, Any] = json.loads(file.read(SETTINGS_MAX))
    return settings


def main() -> None:
    """Run a mold to its end. The master learns of a failure by the channel, not by the status."""
    sandbox.forbid_inspection()
    fds = arguments.read(sys.argv[1:])
    # Python ignores SIGPIPE and SIGXFSZ and catches SIGINT. Workers start with the default for
    # every signal. Only SIGPIPE is caught, because the import may print to a pipe without a reader,
    # and the mold must survive that. A worker's first act sets SIGPIPE back.
    signal.signal(signal.SIGPIPE, do_nothing)
    for number in (signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    clone.reset_internal_signals()
    for fd in fds.values():
        os.set_inheritable(fd, False)
    wire = channel.open_wire(fds["channel"])
    set_title("mold")
    settings = _read_settings(fds["settings"])
    stream.install()
    # A master of an older version does not send this field, and has no logger.
    framed = settings.get("log_framed", False)
    log_format = "raw" if framed else settings["log_format"]
    log.configure(format=log_format, level=settings["log_level"], journal=settings["log_journal"], framed=framed)
    wire.send(channel.pack_mold_report(MoldWord.HELLO, text=__version__))
    mold = Mold(wire, settings, fds)
    try:
        threads = mold.prepare()
    except BaseException as error:  # user code may raise anything, SystemExit included
        text = trace(error)
        wire.send(channel.pack_mold_report(MoldWord.FAILED, text=f"{type(error).__name__}: {error}\n{text}"[:TRACEBACK_MAX]))
        sys.exit(1)
    if mold.uses_clone:
        from poold.mold.prefault import provide
        from poold.mold.warmup import scout

        try:
            # The scout is called at the depth of the stack at which orders are worked off. The
            # scout's frames then have the same addresses as a worker's.
            pages = scout(mold.worker)
            if pages is not None:
                mold.worker.take_pages = provide(pages, partial(scout, mold.worker)) or mold.worker.take_pages
        except Exception as error:  # without these pages a session is slower, and served all the same
            log.info("pages_not_prefaulted", reason=f"{type(error).__name__}: {error}")
    wire.send(channel.pack_mold_report(MoldWord.READY, number=threads))
    mold.run()

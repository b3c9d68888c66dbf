"""The first steps of the program that an upgrade has put in the old one's place.

The process, its pid, its children and the descriptors that the state document names are the same; signals are blocked and kept, and
an alarm is set that ends this process should it not come as far as its loop. Whatever goes wrong here ends it with a reason on
standard error: its parent starts it anew, and its children end with it.
"""

import os
import sys
from pathlib import Path

from poold import sandbox, systemd
from poold.errors import ConfigError, ExitCode
from poold.log import log, trace
from poold.master import state
from poold.master.current import Current
from poold.master.main import Master
from poold.master.signals import Inbox
from poold.master.state import StateDocument
from poold.settings import config
from poold.settings.config import People
from poold.title import set_title


def main() -> None:
    """Take over, and be the master."""
    sandbox.hide()
    # First of all: what is inheritable for the exec's sake must not be for any child's.
    systemd.inherit_nothing()
    set_title("master")
    fds = {name: int(number) for name, _, number in (argument.partition("=") for argument in sys.argv[1:])}
    environ = dict(os.environ)
    try:
        found = _read(fds["state"])
        close_others(found)
        code = _master(found, environ).run()
    except Exception as error:  # there is nobody above who could do anything about it
        problems = error.problems if isinstance(error, ConfigError) else [error]
        log.error("upgrade_failed", reason="; ".join(map(str, problems)), traceback=trace(error))
        code = ExitCode.INTERNAL
    # As in poold.cli.run: not through the interpreter's own end.
    os._exit(code)


def _read(fd: int) -> StateDocument:
    with open(fd, "rb") as file:
        return state.read(file.read())


def close_others(found: StateDocument) -> None:
    """Close every descriptor that the document does not name: nothing is carried on that nobody knows of."""
    known = found.descriptors()
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in known:
            try:
                os.close(int(name))
            except OSError:
                # The listing's own.
                continue


def _master(found: StateDocument, environ: dict[str, str]) -> Master:
    settings = config.of_document(found.settings)
    log.configure(format=settings.log.format, level=settings.log.level)
    return Master(
        Current(settings, People(**found.people), found.generation + 1, found.warnings),
        inbox=Inbox(),
        passed=[(each.name, each.fd) for each in found.passed],
        file=Path(found.file) if found.file is not None else None,
        control=found.control.path,
        environ=os.environ,
        origin=environ,
        inherited=found,
    )

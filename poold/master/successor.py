"""The first steps of the program that an upgrade has put in the old one's place.

The process, its pid, its children and the descriptors that the state document names are the same; signals are blocked and kept, and
a guard (`poold.master.guard`) ends this process should it not come as far as its loop. Whatever goes wrong here ends it with a reason on
standard error: its parent starts it anew, and its children end with it.
"""

import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from poold import arguments, sandbox, systemd
from poold.errors import ConfigError, ExitCode
from poold.log import log, trace
from poold.master.children.spawn import Launcher
from poold.master.current import Current
from poold.master.engine.signals import Inbox
from poold.master.main import Master
from poold.master.upgrade import state
from poold.master.upgrade.state import StateDocument
from poold.settings import config
from poold.settings.config import People
from poold.title import set_title


def main() -> None:
    """Take over, and be the master. Does not return."""
    sandbox.forbid_inspection()
    # First of all: what is inheritable for the exec's sake must not be for any child's.
    systemd.inherit_nothing()
    set_title("master")
    fds = arguments.read(sys.argv[1:])
    origin = dict(os.environ)
    # Whatever is raised before it is known how to tell, the program's first lines tell (`poold.master.upgrade.program`).
    found, guard = _read(fds["state"]), fds.get("guard")
    log.configure(format=found.settings["log"]["format"], level=found.settings["log"]["level"])
    try:
        close_others(found, guard)
        code = build(found, environ=os.environ, origin=origin, guard=guard).run()
    except Exception as error:  # there is nobody above who could do anything about it
        problems = error.problems if isinstance(error, ConfigError) else [error]
        log.error("upgrade_failed", reason="; ".join(map(str, problems)), traceback=trace(error))
        code = ExitCode.INTERNAL
    # As in poold.cli.run: not through the interpreter's own end.
    os._exit(code)


def _read(fd: int) -> StateDocument:
    with open(fd, "rb") as file:
        return state.read(file.read())


def close_others(found: StateDocument, guard: int | None) -> None:
    """Close every descriptor that the document does not name, but the guard's: nothing is carried on that nobody knows of."""
    known = found.named_descriptors() | {guard}
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in known:
            try:
                os.close(int(name))
            except OSError:
                # The listing's own.
                continue


def build(
    found: StateDocument,
    *,
    environ: MutableMapping[str, str],
    origin: Mapping[str, str],
    guard: int | None = None,
    launcher: type[Launcher] = Launcher,
) -> Master:
    """Return the master that goes on from a document with the settings in it; the rest is as for `Master`. Raises ConfigError."""
    return Master(
        Current(config.of_document(found.settings), People(**found.people), found.generation + 1, found.warnings),
        inbox=Inbox(),
        passed=[(each.name, each.fd) for each in found.passed],
        file=Path(found.file) if found.file is not None else None,
        control=found.control.path,
        environ=environ,
        origin=origin,
        inherited=found,
        guard=guard,
        launcher=launcher,
    )

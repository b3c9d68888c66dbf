"""The first steps of the new program after the exec of an upgrade.

The process, its pid, its children and the document's descriptors are the same as before. Signals
are blocked, and kept for later. A guard (`poold.master.guard`) ends the process if the new program
does not reach its loop.

After an error the process logs the reason and ends. The service manager then starts poold anew, and
the children end with this process.
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
    """Take over from the previous program, and be the master. Does not return."""
    sandbox.forbid_inspection()
    # The descriptors are inheritable because of the exec. No child may inherit them.
    systemd.inherit_nothing()
    set_title("master")
    fds = arguments.read(sys.argv[1:])
    origin = dict(os.environ)
    # Before the log is configured, the program's first lines report errors
    # (`poold.master.upgrade.program`).
    found, guard = _read(fds["state"]), fds.get("guard")
    log.configure(format=found.settings["log"]["format"], level=found.settings["log"]["level"])
    try:
        close_others(found, guard)
        code = build(found, environ=os.environ, origin=origin, guard=guard).run()
    except Exception as error:  # no caller could act on the error
        problems = error.problems if isinstance(error, ConfigError) else [error]
        log.error("upgrade_failed", reason="; ".join(map(str, problems)), traceback=trace(error))
        code = ExitCode.INTERNAL
    # As in poold.cli.run, the process ends without the interpreter's own end.
    os._exit(code)


def _read(fd: int) -> StateDocument:
    with open(fd, "rb") as file:
        return state.read(file.read())


def close_others(found: StateDocument, guard: int | None) -> None:
    """Close every descriptor but the guard's and those that the document names.

    Nothing in the new program knows of any other descriptor, so it would stay open.
    """
    known = found.named_descriptors() | {guard}
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in known:
            try:
                os.close(int(name))
            except OSError:
                # This descriptor belongs to the listing.
                continue


def build(
    found: StateDocument,
    *,
    environ: MutableMapping[str, str],
    origin: Mapping[str, str],
    guard: int | None = None,
    launcher: type[Launcher] = Launcher,
) -> Master:
    """Return the master that goes on from a document, which holds the new settings.

    The other arguments are those of `Master`. Raises ConfigError.
    """
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

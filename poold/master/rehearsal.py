"""The trial of an upgrade: finds out whether the code on disk can take the master's place.

The master of another version starts this trial as any master starts `poold.settings.trial`. The
trial gets `text`, the bytes of the settings file, and `state`, the state document. `settings` holds
`file` and `master`. The verdict goes into `result`, in the form of that other trial, and with two
more fields. `mold` is the recipe for the new code's mold, which the old code passes on unchanged.
`files` lists what the new program consists of on disk. These files must be unchanged at the exec
(`poold.master.upgrade.footprint`).

The trial does not trust the installation, and looks at the files before importing any. Then the
trial imports all modules. At last the trial lets the new program take over and run once
(`poold.master.drill`).
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poold import arguments, sandbox, stream
from poold.errors import Problem, pack_problems
from poold.log import log
from poold.master.children.spawn import SUCCESSOR
from poold.master.upgrade import footprint, installation
from poold.title import set_title

if TYPE_CHECKING:
    from poold.address import Address
    from poold.master.upgrade.state import StateDocument
    from poold.settings.config import Config

DOCUMENT_MAX = 256 << 20


def main() -> None:
    """Judge, and write the verdict."""
    sandbox.forbid_inspection()
    fds = arguments.read(sys.argv[1:])
    stream.install()
    set_title("trial")
    settings = json.loads(os.pread(fds["settings"], DOCUMENT_MAX, 0))
    log.frame(on=settings.get("log_framed", False))
    sandbox.kill_with_parent(settings.get("master"))
    file = Path(settings["file"]) if settings["file"] else None
    found = verdict(os.pread(fds["text"], DOCUMENT_MAX, 0), file, os.pread(fds["state"], DOCUMENT_MAX, 0))
    data = json.dumps(found).encode()
    while data:
        data = data[os.write(fds["result"], data) :]


def verdict(text: bytes, file: Path | None, document: bytes) -> dict[str, Any]:
    """Return the verdict on the settings (`poold.settings.judge.verdict`) and on the upgrade."""
    # The look comes before the first import, so that every later change is noticed.
    files = list(installation.own_files())
    recorded = installation.record()
    problems = [] if recorded is None else list(installation.damaged(recorded))
    # The successor is loaded first. Its files, and no others, must not change until the exec.
    problems = problems or list(installation.load([SUCCESSOR]))
    files += installation.other_files()
    problems = problems or list(installation.load(installation.modules()))
    if recorded is None:
        problems = problems or list(installation.incomplete(installation.modules()))
    if problems:
        return pack_problems(problems)
    found = _judged(text, file, document)
    if recorded is None:
        log.debug("upgrade_unchecked", what="the installed files by checksum", reason="none are written down (RECORD)")
    return {**found, "files": footprint.write(files)}


def _judged(text: bytes, file: Path | None, document: bytes) -> dict[str, Any]:
    from poold.master import drill  # the files are checked before this import
    from poold.master.children import spawn  # the files are checked before this import
    from poold.master.upgrade import state  # the files are checked before this import
    from poold.settings import config, judge

    try:
        running = state.read(document)
    except state.StateError as error:
        return pack_problems([Problem("", str(error))])
    found = judge.verdict(text, file, environ=os.environ)
    if "problems" in found:
        return found
    settings, people = config.of_document(found["settings"]), config.People(**found["people"])
    problems = list(obstacles(running, settings))
    if problems:
        return pack_problems(problems)
    log.configure(format=settings.log.format, level=settings.log.level)
    problems = list(drill.drill(replace(running, settings=found["settings"], people=found["people"], warnings=tuple(found["warnings"]))))
    set_title("trial")
    if problems:
        return pack_problems(problems)
    return {**found, "mold": asdict(spawn.Launcher(os.environ, (running.limits[0], running.limits[1])).recipe(settings, people))}


def obstacles(running: "StateDocument", settings: "Config") -> Iterator[Problem]:
    """Yield what would make an upgrade to these settings fail, or could not be undone.

    After the exec there is no way back, so no socket is opened after the exec. An upgrade changes
    the code, and those settings that need no new socket. A reload, before or after the upgrade,
    does the rest.
    """
    from poold.words import LISTENERS_MAX

    yield from (Problem(f"listener {each}", "is not open yet; poold reload opens it") for each in _missing(running, settings))
    yield from (Problem(f"listener {each}", "is open; poold reload closes it") for each in _surplus(running, settings))
    if running.metrics_address != _written(settings.metrics.listen):
        yield Problem("metrics.listen", "has changed; poold reload moves it")
    if running.control_setting != settings.control.socket:
        yield Problem("control.socket", "has changed, and that needs a restart")
    if len({*running.tally.listeners, *(listener.name for listener in settings.listeners)}) > LISTENERS_MAX:
        yield Problem("listener.name", f"at most {LISTENERS_MAX} names can be used in one life of poold")


def _written(address: "Address | None") -> str | None:
    return str(address) if address is not None else None


def _bound(settings: "Config") -> set[tuple[str, str | None, bool]]:
    return {(str(each.address), each.interface, each.freebind) for each in settings.listeners}


def _open(running: "StateDocument") -> set[tuple[str, str | None, bool]]:
    return {(each.address, each.interface, each.freebind) for each in running.listeners if not each.leaving}


def _missing(running: "StateDocument", settings: "Config") -> list[str]:
    return sorted(address for address, _, _ in _bound(settings) - _open(running))


def _surplus(running: "StateDocument", settings: "Config") -> list[str]:
    return sorted(address for address, _, _ in _open(running) - _bound(settings))

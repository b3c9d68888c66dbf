"""The trial of an upgrade: the code that is on disk now judges the settings, and whether it could go on from where this master is.

Started as `poold.settings.trial` is, and by another version's master: it gets the bytes of the settings file (`text`), the state
document (`state`) and `settings` with `file` and `master`, and writes into `result` what that trial writes, and besides `mold`: what this
code's mold is to be started with, which the other code passes on as it is.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from poold import sandbox, stream
from poold.address import Address
from poold.errors import Problem
from poold.log import log
from poold.master import state, successor
from poold.master.spawn import Launcher
from poold.master.state import StateDocument, StateError
from poold.scoreboard import LISTENERS_MAX
from poold.settings import config, judge
from poold.settings.config import Config, People
from poold.title import set_title

DOCUMENT_MAX = 256 << 20
# All that will run in the master's place has been imported here when the verdict is yes.
SUCCESSOR = successor.main


def main() -> None:
    """Judge, and write down the verdict."""
    sandbox.hide()
    fds = {name: int(number) for name, _, number in (argument.partition("=") for argument in sys.argv[1:])}
    stream.install()
    set_title("trial")
    settings = json.loads(os.pread(fds["settings"], DOCUMENT_MAX, 0))
    sandbox.vanish_with(settings.get("master"))
    file = Path(settings["file"]) if settings["file"] else None
    found = verdict(os.pread(fds["text"], DOCUMENT_MAX, 0), file, os.pread(fds["state"], DOCUMENT_MAX, 0))
    data = json.dumps(found).encode()
    while data:
        data = data[os.write(fds["result"], data) :]


def verdict(text: bytes, file: Path | None, document: bytes) -> dict[str, Any]:
    """Return what `poold.settings.judge.verdict` says of the settings, or what is in the way of an upgrade."""
    try:
        running = state.read(document)
    except StateError as error:
        return judge.refusal([Problem("", str(error))])
    found = judge.verdict(text, file, environ=os.environ)
    if "problems" in found:
        return found
    settings, people = config.of_document(found["settings"]), People(**found["people"])
    problems = list(obstacles(running, settings))
    if problems:
        return judge.refusal(problems)
    log.configure(format=settings.log.format, level=settings.log.level)
    return {**found, "mold": asdict(Launcher(os.environ, (running.limits[0], running.limits[1])).recipe(settings, people))}


def obstacles(running: StateDocument, settings: Config) -> list[Problem]:
    """Return what an upgrade to these settings could fail of, or could not undo.

    After the exec there is no way back, so nothing is opened then: what an upgrade changes besides the code is what needs no
    socket. A reload, before or after it, does the rest.
    """
    problems = [Problem(f"listener {each}", "is not open yet; poold reload opens it") for each in _missing(running, settings)]
    problems += [Problem(f"listener {each}", "is open; poold reload closes it") for each in _surplus(running, settings)]
    if running.metrics_address != _written(settings.metrics.listen):
        problems.append(Problem("metrics.listen", "has changed; poold reload moves it"))
    if running.control_setting != settings.control.socket:
        problems.append(Problem("control.socket", "has changed, and that needs a restart"))
    if len({*running.tally.listeners, *(listener.name for listener in settings.listeners)}) > LISTENERS_MAX:
        problems.append(Problem("listener.name", f"at most {LISTENERS_MAX} names can be used in one life of poold"))
    return problems


def _written(address: Address | None) -> str | None:
    return str(address) if address is not None else None


def _bound(settings: Config) -> set[tuple[str, str | None, bool]]:
    return {(str(each.address), each.interface, each.freebind) for each in settings.listeners}


def _open(running: StateDocument) -> set[tuple[str, str | None, bool]]:
    return {(each.address, each.interface, each.freebind) for each in running.listeners if not each.leaving}


def _missing(running: StateDocument, settings: Config) -> list[str]:
    return sorted(address for address, _, _ in _bound(settings) - _open(running))


def _surplus(running: StateDocument, settings: Config) -> list[str]:
    return sorted(address for address, _, _ in _open(running) - _bound(settings))

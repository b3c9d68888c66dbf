"""Errors of poold's own, in every step of a reload, an upgrade and a stop: each ends, is told, and does not keep the next one out.

The package runs from a copy in which every function of the master's can be made to raise once, by writing its name into a file.
"""

import json
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faultkit import forgive
from tests.procfs import open_files
from tests.support import Client, Daemon, Poold, free_port
from tests.upgradekit import install, mend, path_of, upgraded
from tests.waiting import DEADLINE, eventually

# Appended to `poold.master.main` of the copy, which has loaded all the others by then. What is raised is none of the expected kinds.
FAULTS = """

def _arm():
    import functools, os, sys, types
    armed, seen = os.environ["FAULT_ARMED"], os.environ["FAULT_SEEN"]
    raised = dict(memory=MemoryError, recursion=RecursionError, key=KeyError)

    def breakable(function, name):
        @functools.wraps(function)
        def broken(*given, **named):
            try:
                with open(armed) as file:
                    wanted, _, kind = file.read().partition(" ")
            except FileNotFoundError:
                return function(*given, **named)
            if wanted == "?":
                with open(seen, "a") as file:
                    file.write(name + "\\n")
            elif wanted == name:
                os.unlink(armed)
                raise raised[kind](name)
            return function(*given, **named)
        return broken

    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith("poold."):
            continue
        for key, value in list(vars(module).items()):
            if getattr(value, "__module__", None) != module_name:
                continue
            if isinstance(value, types.FunctionType):
                wrapped = breakable(value, module_name + ":" + key)
                for other in list(sys.modules.values()):
                    for there, found in list(vars(other).items()) if getattr(other, "__name__", "").startswith("poold") else []:
                        if found is value:
                            setattr(other, there, wrapped)
            elif isinstance(value, type):
                for attribute, method in list(vars(value).items()):
                    if isinstance(method, types.FunctionType) and not attribute.startswith("__"):
                        setattr(value, attribute, breakable(method, f"{module_name}:{key}.{attribute}"))


if any("from poold.master.successor" in word or word == "poold" for word in __import__("sys").orig_argv):
    _arm()
"""
KINDS = ("memory", "recursion", "key")
# These are what ends a reload or poold, and what says how: there is nobody else who could, did they not even begin.
BEYOND = {
    f"poold.master.engine.loop:Loop.{name}"
    for name in ("call_guarded", "call_each", "call_each_with_retry", "_call_with_retry", "note_error")
}
BEYOND |= {"poold.log:trace", "poold.master.outside.control:Control._answer", "poold.master.main:Master.close"}


class Faulty:
    """A daemon whose master can be made to fail."""

    def __init__(self, poold: Poold, folder: Path) -> None:
        installed = install(folder / "installed")
        main = installed / "master" / "main.py"
        main.write_text(main.read_text() + FAULTS)
        # One fault after the other is no reason to give up; and what is lost is found soon.
        mend(installed / "master" / "engine" / "loop.py", "ERRORS_MAX = 20", "ERRORS_MAX = 100_000")
        mend(installed / "master" / "change" / "trials.py", "TRIAL_SECONDS = 30.0", "TRIAL_SECONDS = 10.0")
        mend(installed / "master" / "children" / "exporters.py", "STARTUP = 20.0", "STARTUP = 10.0")
        mend(installed / "master" / "change" / "running.py", "GRACE_SECONDS = 10.0", "GRACE_SECONDS = 1.0")
        self.armed, self.seen = folder / "armed", folder / "seen"
        self.options = {"pool.min_spare": 1, "timeouts.import": 10, "timeouts.startup": 10}
        self.daemon: Daemon = poold(options=self.options)
        self.environ = {**path_of(installed), "FAULT_ARMED": str(self.armed), "FAULT_SEEN": str(self.seen)}
        self.cap = 100

    def start(self) -> int:
        """Start it, again if it has ended, and return where what it says from now on begins."""
        mark = self.daemon.mark()
        self.daemon.start(environ=self.environ, laws=False)
        self.daemon.event("exporter_ready", after=mark)
        return mark

    def rewrite(self, *, moved: bool) -> None:
        """Change the settings, so that there is something to do at each step; `moved` changes what is open, too."""
        self.cap += 1
        more = ""
        if moved:
            more = f'[[listener]]\naddress = "tcp://127.0.0.1:{free_port()}"\nname = "moved"\n'
        level = "info" if self.cap % 2 else "debug"
        listener = '[[listener]]\naddress = "systemd://main"\nname = "main"\n'
        self.daemon.write(options={**self.options, "pool.max_children": self.cap, "log.level": level}, settings=listener + more)

    def steps(self, act: Callable[[], object], *, first: str, last: str) -> list[str]:
        """Return the functions that are called while this is done, from the first call of one to that of another, by their first calls."""
        self.seen.write_text("")
        self.armed.write_text("? ")
        act()
        self.armed.unlink()
        found = list(dict.fromkeys(self.seen.read_text().splitlines()))
        return [name for name in found[found.index(first) : found.index(last) + 1] if name not in BEYOND]

    def fail_in(self, name: str, kind: str) -> None:
        """Let the next call of this function raise an error of this kind."""
        self.armed.write_text(f"{name} {kind}")

    def asked(self, verb: str) -> dict[str, Any]:
        """Ask for something, and return the answer, or nothing for an end without one; either must come."""
        with Client(str(self.daemon.control)) as client:
            client.send(json.dumps({"verb": verb}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(client.line() or "{}")
            return answer

    def settled(self) -> dict[str, Any]:
        """Wait for a reload that is applied: the one before, which nobody may have been told the end of, has ended."""
        return eventually(lambda: (found := self.asked("reload")).get("ok") and found, "another reload is applied")

    def facts(self) -> list[str]:
        """Return what must be as it was when nobody is there: children with their states, and the kinds of the master's descriptors."""
        children = [f"{row['kind']} {row['state']}" for row in self.daemon.children()]
        files = [name.partition(":[")[0] for name in open_files(self.daemon.master).values()]
        return sorted(children) + sorted(files)

    def is_as(self, before: list[str], name: str) -> None:
        """Wait until the facts are as they were; `name` is where an error was raised, for whoever reads what is different."""
        end = time.monotonic() + DEADLINE
        eventually(lambda: not different(self.facts(), before) or time.monotonic() > end, seconds=2 * DEADLINE)
        assert (name, different(self.facts(), before)) == (name, [])

    def close(self) -> None:
        """Stop it; its errors were wanted."""
        self.armed.unlink(missing_ok=True)
        assert self.daemon.stop() == 0
        forgive(self.daemon, "loop_error")


@pytest.fixture
def faulty(poold: Poold, tmp_path: Path) -> Iterator[Faulty]:
    """Return such a daemon."""
    daemon = Faulty(poold, tmp_path)
    daemon.start()
    yield daemon
    daemon.close()


def different(now: list[str], before: list[str]) -> list[str]:
    """Return what is more or less than before, with a sign."""
    more, less = Counter(now), Counter(before)
    return [f"+{each}" for each in (more - less).elements()] + [f"-{each}" for each in (less - more).elements()]


# Each slice has every sixteenth step. The suite takes two of them; with EVERY_STEP=1 in the environment all are taken, for half an hour.
SLICES = 16
TAKEN = range(SLICES) if "EVERY_STEP" in os.environ else (0, 7)


@pytest.mark.parametrize("slice_", TAKEN)
def test_every_step_of_a_reload(faulty: Faulty, slice_: int) -> None:
    """Whichever function raises during a reload, whatever it raises: the reload ends, whoever asked hears of it, and the next one works."""
    faulty.rewrite(moved=True)
    first, last = "poold.master.change.reloads:Reloads.request", "poold.master.outside.control:Control._answer"
    steps = faulty.steps(faulty.settled, first=first, last=last)
    assert len(steps) > 80
    faulty.rewrite(moved=False)
    faulty.settled()
    settled = ["exporter serving", "logger serving", "mold serving", "worker spare"]
    before = eventually(lambda: (found := faulty.facts())[:4] == settled and not found[4].startswith("worker") and found)
    for number, name in enumerate(steps):
        if number % SLICES != slice_:
            continue
        faulty.rewrite(moved=True)
        faulty.fail_in(name, KINDS[number // SLICES % len(KINDS)])
        faulty.asked("reload")
        faulty.armed.unlink(missing_ok=True)
        faulty.rewrite(moved=False)
        faulty.settled()
        faulty.is_as(before, name)
    with faulty.daemon.connect() as client:
        assert client.ask("echo served") == "served"


@pytest.mark.parametrize("slice_", TAKEN)
def test_every_step_of_an_upgrade(faulty: Faulty, slice_: int) -> None:
    """Whichever function raises before the exec of an upgrade: it ends, whoever asked hears of it, and the next one works."""
    first, last = "poold.master.upgrade.upgrades:Upgrades.request", "poold.master.upgrade.program:exec_successor"
    steps = faulty.steps(lambda: faulty.asked("upgrade"), first=first, last=last)
    assert len(steps) > 60
    with faulty.daemon.connect() as client:
        pid = client.ask("pid")
        for number, name in enumerate(steps):
            if number % SLICES != slice_:
                continue
            faulty.fail_in(name, KINDS[number // SLICES % len(KINDS)])
            faulty.asked("upgrade")
            # A fault that was not met before the exec is none that could be met.
            faulty.armed.unlink(missing_ok=True)
            faulty.settled()
        assert faulty.asked("upgrade")["ok"]
        assert client.ask("pid") == pid


# What is asked for by a signal is lost with an error before it is acted on: whoever wants an end asks once more.
ASKING = {
    "poold.master.engine.signals:Inbox.take",
    "poold.master.engine.loop:Loop.turn",
    "poold.master.engine.loop:Loop._take_signals",
    "poold.master.main:Master._on_signals",
    "poold.master.main:Master._on_term",
    "poold.master.change.drain:Drain.begin",
    "poold.master.phase:Life.drain",
    "poold.master.phase:Life.enter",
}


@pytest.mark.parametrize("slice_", TAKEN)
def test_every_step_of_a_stop(faulty: Faulty, slice_: int, tmp_path: Path) -> None:
    """Whichever function raises from the beginning of a drain on, it ends by itself: with 0, with no session and no socket file left."""
    daemon, path = faulty.daemon, tmp_path / "own.sock"
    own = '[[listener]]\naddress = "systemd://main"\nname = "main"\n' + f'[[listener]]\naddress = "unix://{path}"\n'
    daemon.write(options={**faulty.options, "timeouts.drain": 0.2}, settings=own)
    faulty.settled()

    def stop(prepare: Callable[[], object] = lambda: None) -> None:
        """End it while it has two sessions that do not end, and a client of the control socket."""
        with daemon.connect() as client, Client(str(path)) as other, Client(str(daemon.control)):
            client.ask("pid")
            other.ask("pid")
            prepare()
            daemon.kill(signal.SIGTERM)
            assert client.rest() == other.rest() == b""
            assert daemon.wait() == 0

    steps = faulty.steps(stop, first="poold.master.change.drain:Drain.begin", last="poold.master.children.loggers:Loggers.close")
    steps = [name for name in steps if name not in ASKING]
    assert len(steps) > 40
    for number, name in enumerate(steps):
        if number % SLICES != slice_:
            continue
        mark = faulty.start()
        # For whoever reads why it did not end.
        print(name)
        stop(partial(faulty.fail_in, name, KINDS[number // SLICES % len(KINDS)]))
        faulty.armed.unlink(missing_ok=True)
        assert not path.exists(), name
        assert not daemon.control.exists(), name
        assert daemon.events("stopped", after=mark, exit_status=0), name
    faulty.start()


def test_no_memory_for_a_verdict(poold: Poold) -> None:
    """A master that can have no more memory refuses a reload, answers whoever asked, and reloads when it can have some."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    daemon.event("exporter_ready")
    size = int(Path(f"/proc/{daemon.master}/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.prlimit(daemon.master, resource.RLIMIT_AS)
    told = []
    for more in (8 << 20, 1 << 20, 0):
        resource.prlimit(daemon.master, resource.RLIMIT_AS, (size + more, limits[1]))
        told.append(daemon.cli("reload", "--socket", str(daemon.control)))
        told.append(daemon.cli("upgrade", "--socket", str(daemon.control)))
    assert not any("busy" in each.stderr for each in told), told
    resource.prlimit(daemon.master, resource.RLIMIT_AS, limits)
    assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
    upgraded(daemon)
    with daemon.connect() as client:
        assert client.ask("echo served") == "served"
    assert daemon.stop() == 0
    forgive(daemon, "loop_error")

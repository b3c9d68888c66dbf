"""An upgrade to an installation that is damaged, or that changes meanwhile: the master goes on, with every session.

What is damaged is a copy of the package. Where RECORD is written beside it, as pip does, a checksum finds whatever is not as it was; where
it is not, the new program is found to be broken by being loaded, read and driven in the trial.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import poold as package
from tests.childkit import guard_of
from tests.faultkit import forgive, traced
from tests.needs import needs_strace
from tests.procfs import alive, children_of, take_orphans
from tests.support import HANDLERS, Client, Daemon, Poold
from tests.upgradekit import asked_for_an_upgrade, in_the_successor, install, mend, path_of, record, upgrade, upgraded
from tests.waiting import eventually

SESSIONS = 5


def cut(installed: Path, part: str) -> None:
    """Take away the last third of a module, from the end of a function on: it can still be imported, perhaps."""
    lines = (installed / part).read_text().splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if line.lstrip().startswith(("def ", "@")) and number > len(lines) // 3]
    place = min(starts, key=lambda number: abs(number - len(lines) * 2 // 3))
    (installed / part).write_text("".join(lines[:place]))


def empty(installed: Path, part: str) -> None:
    """Leave nothing of a module."""
    (installed / part).write_text("")


def remove(installed: Path, part: str) -> None:
    """Take a module away."""
    (installed / part).unlink()


def alter(installed: Path, part: str) -> None:
    """Change a byte in a comment, which nothing but a checksum can find."""
    data = (installed / part).read_bytes()
    place = data.index(b"#") + 2
    (installed / part).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


DAMAGE: list[tuple[Callable[[Path, str], None], str]] = [
    (empty, "systemd.py"),
    (empty, "master/clients/sockdiag.py"),
    (remove, "master/upgrade/takeover.py"),
    (remove, "worker/adapters.py"),
    *(
        (cut, f"master/{name}.py")
        for name in (
            "main",
            "engine/deadlines",
            "change/reloads",
            "clients/sessions",
            "pool/handover",
            "upgrade/state",
            "guard",
            "upgrade/upgrades",
        )
    ),
    *((cut, part) for part in ("exporter/main.py", "worker/main.py", "settings/lines.py", "mold/scout.py")),
]


@pytest.fixture
def started(tmp_path: Path, poold: Poold) -> Callable[..., tuple[Daemon, Path]]:
    """Return a function that starts a daemon from a copy of the package, and waits until it starts nothing by itself any more."""

    def start(*, recorded: bool = False, **arguments: object) -> tuple[Daemon, Path]:
        installed = install(tmp_path / "installed")
        if recorded:
            record(installed)
        daemon = poold(**{"options": {"pool.min_spare": 1}, **arguments}).start(environ=path_of(installed))
        daemon.event("exporter_ready")
        return daemon, installed

    return start


def refused(daemon: Daemon, installed: Path, damage: Callable[[], object], *words: str) -> None:
    """Have an upgrade to what is damaged refused, with sessions held that go on; once it is mended, have it applied."""
    good = installed.with_name("good")
    shutil.copytree(installed, good)
    with ExitStack() as stack:
        held = [stack.enter_context(daemon.connect()) for _ in range(SESSIONS)]
        pids = [client.ask("pid") for client in held]
        damage()
        done = upgrade(daemon)
        assert done.returncode == 1, done
        assert any(word in done.stderr for word in words), done.stderr
        daemon.metric("poold_upgrades_total", 1, result="refused")
        shutil.rmtree(installed)
        shutil.copytree(good, installed)
        upgraded(daemon)
        assert [client.ask("pid") for client in held] == pids
        with daemon.connect() as later:
            assert later.ask("echo served") == "served"
    metrics = daemon.metrics()
    assert metrics.total("poold_unknown_children_reaped_total") == 0
    assert metrics.total("poold_children_failed_total") == 0


@pytest.mark.parametrize(("how", "part"), [*DAMAGE, (alter, "master/engine/loop.py")], ids=lambda value: getattr(value, "__name__", value))
def test_found_by_its_checksum(started: Callable[..., tuple[Daemon, Path]], how: Callable[[Path, str], None], part: str) -> None:
    """What the installer has written down is compared: whatever is not as it was installed refuses the upgrade, by its name."""
    daemon, installed = started(recorded=True)
    words = f"{part} is not as it was installed", f"{part} cannot be read", "the trial ended"
    refused(daemon, installed, lambda: how(installed, part), *words)
    assert daemon.events("upgrade_unchecked") == []


@pytest.mark.parametrize(("how", "part"), DAMAGE, ids=lambda value: getattr(value, "__name__", value))
def test_found_without_a_checksum(started: Callable[..., tuple[Daemon, Path]], how: Callable[[Path, str], None], part: str) -> None:
    """Where nothing is written down, the new program is loaded, read and driven, and what it lacks is found."""
    daemon, installed = started()
    refused(daemon, installed, lambda: how(installed, part), "cannot be loaded", "which is nowhere", "in a drill", " ended")
    assert daemon.stop() == 0
    # Those of the drill.
    forgive(daemon, "loop_error")


def test_nothing_is_written_down(started: Callable[..., tuple[Daemon, Path]]) -> None:
    """Without RECORD the upgrade is applied, and it is said that no checksum was compared; with it nothing is said."""
    daemon, installed = started()
    upgraded(daemon)
    assert "RECORD" in daemon.event("upgrade_unchecked")["reason"]
    record(installed)
    mark = daemon.mark()
    upgraded(daemon)
    assert daemon.events("upgrade_unchecked", after=mark) == []


# Its import waits as long as there is a file.
PATIENT = """
import os, time
while os.path.exists(os.environ["WAIT"]):
    time.sleep(0.01)
from cases import serve
"""


class Between:
    """A daemon in the middle of an upgrade: the trial has said yes, and the new mold still imports the handler."""

    def __init__(self, poold: Poold, folder: Path, environ: Mapping[str, str]) -> None:
        self.wait = folder / "wait"
        handlers = folder / "handlers"
        handlers.mkdir()
        (handlers / "patient.py").write_text(PATIENT)
        variables = {"WAIT": str(self.wait), "PYTHONDONTWRITEBYTECODE": "1"}
        path = [str(handlers), str(HANDLERS)]
        options = {"pool.min_spare": 1, "server.handler": "patient:serve", "server.path": path, "server.environment": variables}
        self.daemon: Daemon = poold(options=options).start(environ=environ)
        self.daemon.event("exporter_ready")
        self.asking: Client | None = None

    def begin(self) -> None:
        """Ask for an upgrade, and wait until only the handler is missing."""
        self.wait.touch()
        mark = self.daemon.mark()
        self.asking = asked_for_an_upgrade(self.daemon)
        self.daemon.event("mold_started", after=mark)

    def end(self) -> dict[str, Any]:
        """Let it go on, and return its result."""
        assert self.asking is not None
        self.wait.unlink()
        with self.asking:
            answer: dict[str, Any] = json.loads(self.asking.line())
            return answer

    def close(self) -> None:
        """Do not wait for the result."""
        assert self.asking is not None
        self.asking.close()

    def given_up(self, *words: str) -> None:
        """Let it go on, and make sure that it is given up for a reason with one of these words, and that everything is as it was."""
        with self.daemon.connect() as client:
            pid = client.ask("pid")
            answer = self.end()
            assert not answer["ok"]
            assert any(word in json.dumps(answer) for word in words), answer
            assert client.ask("pid") == pid
            with self.daemon.connect() as later:
                assert later.ask("echo served") == "served"


@pytest.fixture
def between(tmp_path: Path, poold: Poold) -> Callable[[Mapping[str, str]], Between]:
    """Return a function that starts such a daemon with these variables."""
    return lambda environ: Between(poold, tmp_path, environ)


@pytest.mark.parametrize("part", ["master/upgrade/takeover.py", "worker/main.py", "__init__.py"])
@pytest.mark.parametrize("how", [remove, empty, "touch", "replace"], ids=lambda how: getattr(how, "__name__", how))
def test_a_file_that_changes_after_the_trial(tmp_path: Path, between: Callable[..., Between], how: Any, part: str) -> None:
    """A module that is removed, emptied, written anew or replaced between trial and exec: nothing is executed, and nobody is lost."""
    installed = install(tmp_path / "installed")
    running = between(path_of(installed))
    running.begin()
    file = installed / part
    good = file.read_bytes()
    if how == "touch":
        os.utime(file, ns=(1, 1))
    elif how == "replace":
        shutil.copy2(file, file.with_name("new"))
        file.with_name("new").rename(file)
    else:
        how(installed, part)
    # What the mold needs may be missed by the mold first.
    running.given_up("has changed since it was tried", "the mold ended")
    file.write_bytes(good)
    running.begin()
    assert running.end()["ok"]


def virtual(folder: Path) -> Path:
    """Make an environment whose interpreter is a link, and return the link."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.symlink_to(Path(sys.executable).resolve())
    for name in ("lib", "pyvenv.cfg"):
        (folder / name).symlink_to(Path(sys.prefix) / name)
    return python


@pytest.mark.parametrize("instead", ["/bin/false", ""])
def test_an_interpreter_that_changes_after_the_trial(
    tmp_path: Path, between: Callable[..., Between], monkeypatch: pytest.MonkeyPatch, instead: str
) -> None:
    """Another program in the interpreter's place, or none, between trial and exec: it is not executed."""
    python = virtual(tmp_path / "venv")
    monkeypatch.setattr(sys, "executable", str(python))
    running = between({})
    monkeypatch.undo()
    running.begin()
    python.unlink()
    if instead:
        python.symlink_to(instead)
    running.given_up("bin/python has changed since it was tried")
    python.unlink(missing_ok=True)
    python.symlink_to(Path(sys.executable).resolve())
    running.begin()
    assert running.end()["ok"]


def test_a_link_that_is_moved_after_the_trial(tmp_path: Path, between: Callable[..., Between]) -> None:
    """A release that is moved to another one between trial and exec is not executed untried; the next upgrade takes it."""
    link = tmp_path / "current"
    for number, name in enumerate(("old", "new")):
        mend(install(tmp_path / name) / "__init__.py", f'__version__ = "{package.__version__}"', f'__version__ = "{number}.0"')
    link.symlink_to("old")
    running = between(path_of(link / "poold"))
    running.begin()
    link.unlink()
    link.symlink_to("new")
    running.given_up("has changed since it was tried")
    assert upgrade(running.daemon).returncode == 0
    assert running.daemon.ask("status")["version"] == "1.0"


VERDICT = '"files": footprint.write(files)}'
LISTS = [
    ('**{"invented": {"later": 1}}, "files": [{**each, "digest": "later"} for each in footprint.write(files)]}', True, ""),
    ("}", True, "whether a file changes"),
    ('"files": [1]}', False, ""),
    ('"files": [{"path": "/etc/passwd"}]}', False, ""),
    ('"files": {}}', False, ""),
    ('"files": footprint.write(files) * 5}', False, ""),
]


@pytest.mark.parametrize(("written", "applied", "unchecked"), LISTS)
def test_lists_of_other_versions(started: Callable[..., tuple[Daemon, Path]], written: str, applied: bool, unchecked: str) -> None:
    """A trial of another version may list no files, or say more of each; a list that is none refuses the upgrade."""
    daemon, installed = started()
    mend(installed / "master" / "rehearsal.py", VERDICT, written)
    done = upgrade(daemon)
    assert (done.returncode == 0) is applied, done
    assert not unchecked or [each for each in daemon.events("upgrade_unchecked") if unchecked in each["what"]]
    if not applied:
        assert "loop_error has its traceback" in done.stderr
        assert daemon.stop() == 0
        forgive(daemon, "loop_error")


# What the new program cannot get past, although its trial could.
ENTRANCE = [
    ("__init__.py", "raise ImportError('no luck')"),
    ("__init__.py", "raise SystemExit(0)"),
    ("log.py", "raise MemoryError('no luck')"),
    ("master/successor.py", "raise RuntimeError('no luck')"),
    ("master/successor.py", "def main(): raise KeyboardInterrupt('no luck')"),
    ("systemd.py", "def inherit_nothing(): raise OSError('no luck')"),
]


@pytest.mark.parametrize("shape", ["json", "text"])
@pytest.mark.parametrize(("part", "fault"), ENTRANCE)
def test_a_program_that_cannot_be_loaded(started: Callable[..., tuple[Daemon, Path]], shape: str, part: str, fault: str) -> None:
    """Whatever keeps the new program from beginning, it says so in the log's own shape, and ends with poold's status for a fault."""
    daemon, installed = started(options={"pool.min_spare": 1, "log.format": shape} if shape == "json" else {"pool.min_spare": 1})
    if shape == "text":
        daemon.write(options={"pool.min_spare": 1, "log.format": "text"})
        assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
    if daemon.keeper is not None:
        daemon.keeper.close()
        daemon.keeper = None
    file = installed / part
    file.write_text(file.read_text() + "\n" + in_the_successor(fault, indent=""))
    before = children_of(os.getpid())
    assert upgrade(daemon).returncode == 3
    assert daemon.wait() == 70
    take_orphans(before)
    [line] = [line for line in daemon.log.read_text().splitlines() if "upgrade_failed" in line]
    assert ("no luck" in line) or "SystemExit" in line
    if shape == "json":
        assert json.loads(line)["level"] == "error"
    else:
        assert " error upgrade_failed reason=" in line
    daemon.control.unlink(missing_ok=True)


def sitecustomized(installed: Path, code: str) -> None:
    """Have an interpreter do something before its first line of anybody's."""
    (installed.parent / "sitecustomize.py").write_text(in_the_successor(code, indent=""))


def test_a_program_that_hangs_before_it_begins(started: Callable[..., tuple[Daemon, Path]]) -> None:
    """A new program that hangs before Python comes to it is killed by the upgrade's guard, which says so."""
    daemon, installed = started()
    if daemon.keeper is not None:
        daemon.keeper.close()
        daemon.keeper = None
    mend(installed / "master" / "guard.py", "SECONDS = 20", "SECONDS = 2")
    sitecustomized(installed, "import time; time.sleep(3600)")
    before = children_of(os.getpid())
    with daemon.connect() as client:
        client.ask("pid")
        assert upgrade(daemon).returncode == 3
        assert daemon.wait() == -signal.SIGKILL
        take_orphans(before)
        assert client.rest() == b""
    assert daemon.event("upgrade_hangs")["seconds"] == 2
    daemon.control.unlink(missing_ok=True)


@needs_strace
@pytest.mark.parametrize("moment", ["delay_enter", "delay_exit"])
def test_a_stray_alarm(poold: Poold, moment: str) -> None:
    """An ALRM that comes while the next program is executed or loaded ends nobody."""
    daemon = poold(options={"pool.min_spare": 1}).start(laws=False)
    with daemon.connect() as client:
        client.ask("pid")
        daemon.metric("poold_children", 1, kind="worker", state="spare")
        with traced(daemon.folder, daemon.master, f"inject=execve:{moment}=1000000:when=1") as tracer:
            asking = asked_for_an_upgrade(daemon)
            eventually(lambda: tracer.lines("execve("), "it is executed")
            for _ in range(20):
                os.kill(daemon.master, signal.SIGALRM)
                os.kill(daemon.master, signal.SIGRTMIN)
            with asking:
                assert json.loads(asking.line())["ok"]
            daemon.metric("poold_children", 1, kind="mold")
            eventually(lambda: [row["kind"] for row in daemon.children()].count("trial") == 0)
        assert client.ask("echo on") == "on"


def test_a_guard_that_ends(between: Callable[..., Between]) -> None:
    """An upgrade whose guard is killed before the exec is refused; a signal that anybody may send does not make a guard strike."""
    running = between({})
    running.begin()
    guard = guard_of(running.daemon)
    for number in (signal.SIGALRM, signal.SIGCONT, signal.SIGWINCH):
        with contextlib.suppress(ProcessLookupError):
            os.kill(guard, number)
    os.kill(guard, signal.SIGKILL)
    running.given_up("the guard of the upgrade has ended")
    running.begin()
    assert running.end()["ok"]
    eventually(lambda: running.daemon.children("trial") == [], "no guard is left")


def test_a_guard_leaves_with_its_master(between: Callable[..., Between]) -> None:
    """A master that is killed in the middle of an upgrade leaves no guard behind."""
    running = between({})
    running.begin()
    guard = guard_of(running.daemon)
    running.daemon.crash()
    running.close()
    eventually(lambda: not alive(guard), "it has gone")
    running.daemon.control.unlink(missing_ok=True)

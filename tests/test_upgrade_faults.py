"""An upgrade in bad company: a document that does not fit the process, signals all the time, verdicts that are none."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.childkit import spares_of
from tests.faultkit import forgive
from tests.procfs import alive, open_files
from tests.support import Client, Daemon, Poold, free_port
from tests.upgradekit import TAKEOVER, in_the_successor, install, mend, path_of, upgrade, upgraded
from tests.waiting import eventually


@pytest.fixture
def meddled(tmp_path: Path, poold: Poold) -> Callable[..., Daemon]:
    """Return a function that starts a daemon whose next program does something odd to the state that it takes over."""

    def start(meddling: str, **arguments: object) -> Daemon:
        installed = install(tmp_path / "installed")
        daemon = poold(**arguments).start(environ=path_of(installed))
        # What it starts until the upgrade is started from good code.
        daemon.event("exporter_ready")
        lines = in_the_successor("import dataclasses", *meddling.splitlines())
        mend(installed / "master" / "upgrade" / "takeover.py", TAKEOVER, f"{lines}{TAKEOVER}")
        return daemon

    return start


@pytest.fixture
def stranger() -> Iterator[int]:
    """Return the pid of a process that is no child of poold's."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process.pid
    assert process.poll() is None
    process.kill()
    process.wait()


CHANGED = """
changed = [dataclasses.replace(each, pid={pid}) if each.session is not None else each for each in state.children]
state = dataclasses.replace(state, children=tuple(changed))
""".strip()


@pytest.mark.parametrize("whose", ["a stranger's", "the master's own", "nobody's"])
def test_pid_that_is_no_childs(meddled: Callable[..., Daemon], stranger: int, whose: str) -> None:
    """A session whose pid is no child of the master's is lost, is counted, and whoever has that pid is never signalled."""
    nobody = int(Path("/proc/sys/kernel/pid_max").read_text())
    pid = {"a stranger's": str(stranger), "the master's own": "os.getpid()", "nobody's": str(nobody)}[whose]
    daemon = meddled(CHANGED.format(pid=pid), options={"pool.min_spare": 1})
    with daemon.connect() as client:
        worker = int(client.ask("pid"))
        upgraded(daemon)
        daemon.event("exit_status_lost")
        daemon.metric("poold_sessions_ended_total", 1, cause="lost")
        daemon.metric("poold_children_failed_total", 1, reason="unknown")
        with daemon.connect() as later:
            assert later.ask("echo served") == "served"
        # Nobody's any more, it goes on until its client or the master does.
        assert client.ask("echo on") == "on"
    eventually(lambda: not alive(worker), "its end")
    daemon.metric("poold_unknown_children_reaped_total", 1)
    assert daemon.stop() == 0


@pytest.mark.parametrize("instead", ["os.close(fd)", "os.dup2(os.open('/dev/null', os.O_RDONLY), fd)", "os.dup2(1, fd)"])
@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_listener_that_is_none(meddled: Callable[..., Daemon], tmp_path: Path, scheme: str, instead: str) -> None:
    """A listener whose descriptor is something else is opened anew, and said to be lost; sessions and other listeners go on."""
    port, path = free_port(), tmp_path / "u.sock"
    address = f"tcp://127.0.0.1:{port}" if scheme == "tcp" else f"unix://{path}"
    own = f'[[listener]]\naddress = "{address}"\nname = "own"\n[[listener]]\naddress = "systemd://main"\nname = "main"\n'
    meddling = f"fd = next(each.socket.fd for each in state.listeners if each.name == 'own')\n{instead}"
    daemon = meddled(meddling, options={"pool.min_spare": 1}, settings=own)
    # Copies of it that the service manager has not read about yet would keep it open.
    daemon.notify.poll()
    where = ("127.0.0.1", port) if scheme == "tcp" else str(path)
    with Client(where) as client:
        client.ask("pid")
        upgraded(daemon)
        assert daemon.event("listener_lost")["listener"] == "own"
        assert client.ask("echo on") == "on"
        for address_ in (where, daemon.address):
            with Client(address_) as later:
                assert later.ask("echo served") == "served"
    assert daemon.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize("instead", ["os.close(fd)", "os.dup2(os.open('/dev/null', os.O_RDONLY), fd)"])
def test_channel_that_is_none(meddled: Callable[..., Daemon], instead: str) -> None:
    """The mold of the new code is not used when its channel is something else: another one is started, and clients are served."""
    meddling = f"fd = next(each.channel for each in state.children if each.pid == state.mold.pid)\n{instead}"
    daemon = meddled(meddling, options={"pool.min_spare": 1})
    with daemon.connect() as client:
        client.ask("pid")
        upgraded(daemon)
        assert daemon.event("channel_lost")["kind"] == "mold"
        with daemon.connect() as later:
            assert later.ask("echo served") == "served"
        assert client.ask("echo on") == "on"
    daemon.metric("poold_children", 1, kind="mold")


INSTEAD = ["os.close({})", "os.dup2(os.open('/dev/null', os.O_RDONLY), {})", "os.dup2(os.memfd_create('short'), {})"]


@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.parametrize("what", ["control.fd", "metrics.fd", "requester", "lingering[0]"])
def test_descriptor_that_is_none(meddled: Callable[..., Daemon], what: str, instead: str) -> None:
    """Whatever descriptor is something else in the new program: what it stood for is opened anew or given up, and sessions go on."""
    first = "state = dataclasses.replace(state, lingering=(os.dup(2),))\n" if what == "lingering[0]" else ""
    daemon = meddled(first + instead.format(f"state.{what}"), options={"pool.min_spare": 1})
    if daemon.keeper is not None:
        daemon.keeper.close()
        daemon.keeper = None
    with daemon.connect() as client:
        client.ask("pid")
        assert upgrade(daemon).returncode == (3 if what == "requester" else 0)
        daemon.event("upgrade_applied")
        assert daemon.event("listener_lost" if what.endswith(".fd") else "channel_lost")
        assert client.ask("echo on") == "on"
        # The exporter of before listens where ours would until it has left; a reload gets it back.
        assert eventually(lambda: daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0)
        daemon.metric("poold_sessions_active", 1)
        with daemon.connect() as later:
            assert later.ask("echo served") == "served"


@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.parametrize("page", ["activity", "phase"])
def test_page_that_is_none(meddled: Callable[..., Daemon], tmp_path: Path, page: str, instead: str) -> None:
    """A shared memory that is something else in the new program costs no session; a drain comes to its end."""
    daemon = meddled("", options={"pool.min_spare": 1, "timeouts.drain": 1})
    before = "        shared_activity, phase_page_fd = inherited.activity, "
    meddling = in_the_successor(instead.format(f"inherited.{page}"), indent="        ")
    mend(tmp_path / "installed" / "poold" / "master" / "memories.py", before, meddling + before)
    with daemon.connect() as client:
        client.ask("pid")
        upgraded(daemon)
        assert client.ask("echo on") == "on"
        with daemon.connect() as later:
            assert later.ask("echo served") == "served"
            assert len(daemon.children("worker")) >= 2
            assert bool(daemon.events("phase_lost")) is (page == "phase")
            daemon.kill()
            assert daemon.wait() == 0


def test_descriptors_that_nobody_knows(poold: Poold) -> None:
    """What is inheritable in the process and is not in the document is closed by the new program."""
    daemon = poold(options={"pool.min_spare": 1}).start(prelude="os.set_inheritable(os.open('/etc/hostname', os.O_RDONLY), True)")
    assert "/etc/hostname" in open_files(daemon.master).values()
    upgraded(daemon)
    assert "/etc/hostname" not in open_files(daemon.master).values()


VERDICT = "    data = json.dumps(found).encode()"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("b'{'", "cannot be understood"),
        ("b'[]'", "cannot be understood"),
        ("b''", "cannot be understood"),
        ("json.dumps(dict(problems=[dict(invented=1)])).encode()", "cannot be understood"),
        ("json.dumps(dict(invented=1)).encode()", "loop_error has its traceback"),
        ("json.dumps({**found, 'mold': dict(invented=1)}).encode()", "loop_error has its traceback"),
    ],
)
def test_verdict_that_is_none(poold: Poold, tmp_path: Path, written: str, said: str) -> None:
    """A verdict of another version that makes no sense refuses the upgrade; another one may be tried, and nothing has changed."""
    installed = install(tmp_path / "installed")
    daemon = poold(options={"pool.min_spare": 1}).start(environ=path_of(installed))
    daemon.event("exporter_ready")
    file = installed / "master" / "rehearsal.py"
    good = file.read_text()
    mend(file, VERDICT, f"    data = {written}")
    with daemon.connect() as client:
        client.ask("pid")
        done = upgrade(daemon)
        assert (done.returncode, said in done.stderr) == (1, True), done
        daemon.metric("poold_upgrades_total", 1, result="refused")
        file.write_text(good)
        upgraded(daemon)
        assert client.ask("echo on") == "on"
    assert daemon.stop() == 0
    forgive(daemon, "loop_error")


LATER = """    judge_now = judge.verdict
    def later(*given, **named):
        found = judge_now(*given, **named)
        found["settings"]["pool"]["invented"] = 1
        return found
    judge.verdict = later
"""


def test_reload_before_an_upgrade(poold: Poold, tmp_path: Path) -> None:
    """A reload that is judged by a newer version, which has more settings, is refused with a hint at the upgrade that is due."""
    installed = install(tmp_path / "installed")
    daemon = poold(options={"pool.min_spare": 1}).start(environ=path_of(installed))
    daemon.event("exporter_ready")
    begin = "    data = json.dumps(judge.verdict("
    mend(installed / "settings" / "trial.py", begin, LATER + begin)
    for options in ([], ["--dry-run"], []):
        done = daemon.cli("reload", *options, "--socket", str(daemon.control))
        assert (done.returncode, 'run "poold upgrade"' in done.stderr) == (1, True), done
    upgraded(daemon)
    with daemon.connect() as client:
        assert client.ask("echo served") == "served"


STORM = """
import os, signal, sys
while True:
    for number in map(int, sys.argv[2:]):
        os.kill(int(sys.argv[1]), number)
"""


def test_storm_of_signals(poold: Poold) -> None:
    """Signals that come all the time, in the window of the exec too, cost no session; a TERM after them is obeyed."""
    daemon = poold(options={"pool.min_spare": 1, "log.level": "info"}).start(laws=False)
    numbers = [signal.SIGPROF, signal.SIGCHLD, signal.SIGWINCH, signal.SIGUSR1, signal.SIGPIPE, signal.SIGIO, signal.SIGRTMIN]
    with daemon.connect() as client:
        pid = client.ask("pid")
        storm = subprocess.Popen([sys.executable, "-c", STORM, str(daemon.master), *(str(int(number)) for number in numbers)])
        try:
            for generation in range(2, 5):
                upgraded(daemon)
                assert daemon.event("upgrade_applied", generation=generation)
                assert client.ask("pid") == pid
        finally:
            storm.kill()
            storm.wait()
        mark = daemon.mark()
        daemon.kill(signal.SIGUSR2)
        daemon.event("upgrade_started", after=mark)
        for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGHUP):
            daemon.kill(number)
        daemon.event("upgrade_applied", generation=5)
        daemon.event("reload_applied", generation=6)
        assert client.ask("pid") == pid
    assert len(spares_of(daemon, 1)) == 1
    assert daemon.stop() == 0
    assert json.loads(daemon.log.read_text().splitlines()[-1])["event"] == "stopped"

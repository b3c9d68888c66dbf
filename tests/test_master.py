"""The master where the ground is not as expected: as process 1, after an error of its own, without streams, folder or manager."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.childkit import exporter_of, mold_of, spares_of
from tests.faultkit import ended, forgive, terminated, traced
from tests.laws import LawKeeper
from tests.needs import needs_root, needs_strace
from tests.procfs import children_of, has_gone, open_files
from tests.support import HANDLERS, Client, Daemon, Poold
from tests.waiting import eventually

# ---- As process 1 ------------------------------------------------------------------------------------------------------------


NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@contextmanager
def process_1(daemon: Daemon, *, handler: str = "mischief:serve", wait: bool = True) -> Iterator[str]:
    """Start a daemon as the first process of a pid namespace; yields where it listens."""
    if subprocess.run([*NAMESPACE, "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("no pid namespace can be made here")
    path = daemon.folder / "main.sock"
    # Sockets are passed by pid, and nobody here can know the pid in there.
    daemon.passed.pop("main").close()
    daemon.write(settings=f'[[listener]]\naddress = "unix://{path}"\n', options={"server.handler": handler, "pool.min_spare": 1})
    with ended(daemon):
        daemon.start(wrapper=NAMESPACE, wait=wait)
        yield str(path)


def signal_process_1(daemon: Daemon, number: signal.Signals) -> None:
    """Send it a signal; its pid out here is that of the only child of what made the namespace."""
    assert daemon.event("starting")["pid"] == 1
    [pid] = children_of(daemon.pid)
    os.kill(pid, number)


@needs_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_process_1_obeys(poold: Poold, number: signal.Signals) -> None:
    """As process 1, which the kernel spares every signal it does not catch, poold obeys each stop, and passes its exit status on."""
    daemon = poold()
    with process_1(daemon) as path, Client(path) as client:
        signal_process_1(daemon, signal.SIGHUP)
        daemon.event("reload_applied")
        assert client.ask("echo hello") == "hello"
        signal_process_1(daemon, number)
        assert daemon.wait() == 0
        assert client.rest() == b""
    [ended] = daemon.events("session_ended")
    assert ended["cause"] == ("killed" if number == signal.SIGQUIT else "drained")


@needs_root
def test_process_1_serves_and_reaps(poold: Poold) -> None:
    """As process 1 poold serves, does not take its pid for a lost parent, and reaps the orphans that fall to it."""
    daemon = poold()
    with process_1(daemon) as path:
        with Client(path) as one, Client(path) as two:
            assert json.loads(one.ask("facts"))["ppid"] == 1
            one.ask("orphan 9")
            daemon.metric("poold_unknown_children_reaped_total", 1)
            two.send(b"exit 3\n")
            assert two.rest() == b""
            assert one.ask("echo undisturbed") == "undisturbed"
        daemon.metric("poold_sessions_ended_total", 1, cause="ok")
        daemon.metric("poold_sessions_ended_total", 1, cause="exit")
        assert daemon.metrics().total("poold_children_failed_total") == 1
        signal_process_1(daemon, signal.SIGTERM)
        assert daemon.wait() == 0


@needs_root
def test_process_1_that_cannot_start(poold: Poold) -> None:
    """As process 1 poold ends with 1 when its handler cannot be imported."""
    daemon = poold()
    with process_1(daemon, handler="nowhere:serve", wait=False):
        assert daemon.wait() == 1


# ---- After an error of its own -----------------------------------------------------------------------------------------------


@needs_strace
def test_error_in_a_callback(poold: Poold) -> None:
    """An error that no code expects is logged and counted, and the loop goes on: the next signal, the next client."""
    daemon = poold(options={"pool.min_spare": 0, "pool.max_spare": 0}).start()
    with daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
        with traced(daemon.folder, daemon.pid, "inject=waitid:error=EPERM:when=1"):
            daemon.kill(signal.SIGCHLD)
            assert daemon.event("loop_error")["error"] == "PermissionError"
        daemon.metric("poold_loop_errors_total", 1)
        assert client.ask("echo undisturbed") == "undisturbed"
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    daemon.metric("poold_children_reaped_total", 1, kind="worker")
    assert daemon.stop() == 0
    forgive(daemon, "loop_error")


@needs_strace
def test_errors_without_end(poold: Poold) -> None:
    """A master whose errors do not stop gives up in order: sessions end, no child is left, and the exit status says why."""
    daemon = poold(options={"pool.min_spare": 0, "pool.max_spare": 0}).start()
    with daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
        with traced(daemon.folder, daemon.pid, "inject=waitid:error=EPERM:when=1..21"):
            # Exits that could not be looked at are looked at again, because no signal comes for them any more.
            daemon.kill(signal.SIGCHLD)
            assert daemon.wait() == 70
        assert client.rest() == b""
    assert len(daemon.events("loop_error")) == 21
    assert len(daemon.events("giving_up")) == 1
    assert [event["cause"] for event in daemon.events("session_ended")] == ["killed"]
    forgive(daemon, "loop_error")


# ---- Without streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_started_with_closed_streams(poold: Poold, closed: tuple[int, ...]) -> None:
    """Standard streams that were closed at the start are /dev/null in every process, so that no connection takes their place."""
    daemon = poold(options={"pool.min_spare": 1})
    with ended(daemon):
        daemon.start(prelude="\n".join(f"os.close({fd})" for fd in closed))
        with daemon.connect() as client:
            assert client.ask("print not for the client") == "ok"
            assert client.ask("echo hello") == "hello"
            pids = [daemon.pid, int(client.ask("pid")), mold_of(daemon), *spares_of(daemon, 1), exporter_of(daemon)]
            assert len(pids) == 5
            for pid in pids:
                files = open_files(pid)
                assert [fd for fd in (0, 1, 2) if files[fd].startswith("socket:")] == []
            files = open_files(daemon.pid)
            assert [files[fd] for fd in closed] == ["/dev/null"] * len(closed)
        assert daemon.metrics()["poold_loop_errors_total"] == 0
        assert terminated(daemon) == 0


# ---- Without its folder ------------------------------------------------------------------------------------------------------


def test_started_in_a_folder_that_is_gone(poold: Poold) -> None:
    """Poold starts in a folder that has been removed, with a PYTHONPATH that leads nowhere, and lives in the root folder."""
    prelude = "os.mkdir('gone')\nos.chdir('gone')\nos.rmdir('../gone')"
    daemon = poold(options={"pool.min_spare": 1}).start(prelude=prelude, environ={"PYTHONPATH": "/nowhere"})
    with daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
        for pid in (daemon.pid, int(client.ask("pid")), mold_of(daemon), *spares_of(daemon, 1)):
            assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_settings_that_are_gone_after_the_start(poold: Poold) -> None:
    """Relative paths were made whole at the start: a new mold finds the handler although the settings file is no more."""
    daemon = poold(options={"server.path": ["handlers"], "control.socket": "control.sock"})
    (daemon.folder / "handlers").symlink_to(HANDLERS)
    daemon.start(prelude="os.chdir('/')")
    daemon.config.unlink()
    mold = mold_of(daemon)
    os.kill(mold, signal.SIGKILL)
    has_gone(mold)
    daemon.metric("poold_mold_starts_total", 2)
    # More than the spares there were: the last ones come from the new mold.
    for _ in range(8):
        with daemon.connect() as client:
            assert client.ask("echo hello") == "hello"
    assert daemon.ask("status")["phase"] == "running"


# ---- Without a service manager -----------------------------------------------------------------------------------------------


def _serves_unannounced(daemon: Daemon) -> None:
    daemon.event("ready")
    daemon.keeper = LawKeeper(daemon.metrics, per_second=20)
    with daemon.connect() as client:
        environ = json.loads(client.ask("facts"))["environ"]
        assert [key for key in environ if key.startswith(("NOTIFY", "LISTEN", "WATCHDOG"))] == []


@pytest.mark.parametrize("address", ["", "relative", "/nonexistent/notify", "/etc/passwd", "@poold-nobody-listens", "/" + "x" * 200, "@"])
def test_manager_that_does_not_listen(poold: Poold, address: str) -> None:
    """A NOTIFY_SOCKET that leads nowhere is no reason not to serve, and no child hears of it."""
    daemon = poold().start(environ={"NOTIFY_SOCKET": address}, wait=False)
    _serves_unannounced(daemon)
    assert daemon.stop() == 0


def test_manager_that_is_not_there(poold: Poold) -> None:
    """Poold serves without NOTIFY_SOCKET."""
    daemon = poold().start(prelude="del os.environ['NOTIFY_SOCKET']", wait=False)
    _serves_unannounced(daemon)
    assert daemon.notify.poll() == []


def test_manager_with_an_abstract_address(poold: Poold) -> None:
    """READY=1 and STOPPING=1 reach an abstract socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(30)
        manager.bind(f"\0poold-test-{os.getpid()}")
        daemon = poold().start(environ={"NOTIFY_SOCKET": f"@poold-test-{os.getpid()}"}, wait=False)
        eventually(lambda: b"READY=1" in manager.recv(4096), "READY=1")
        _serves_unannounced(daemon)
        assert daemon.stop() == 0
        eventually(lambda: b"STOPPING=1" in manager.recv(4096), "STOPPING=1")


def test_manager_that_does_not_read(poold: Poold) -> None:
    """A manager whose queue is full holds up nothing; it hears what comes after."""
    daemon = poold()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(str(daemon.notify.path))
        with suppress(BlockingIOError):
            while True:
                sender.send(b"FILLER=1")
    daemon.start(wait=False)
    _serves_unannounced(daemon)
    assert {key for message in daemon.notify.poll() for key in message} == {"FILLER"}
    assert daemon.stop() == 0
    assert any("STOPPING" in message for message in daemon.notify.poll())

"""Processes that make the master their tracer are stopped by their signals; a stop is no exit, no error, and hides nobody's exit."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator

import pytest

from poold.master.children.reaper import exit_status
from poold.master.children.tracees import RELEASES_MAX, Tracees, is_process
from poold.master.engine.deadlines import Callback
from tests.procfs import gone, state
from tests.support import Client, Daemon, Poold
from tests.waiting import eventually

PTRACE_TRACEME = 0
ONE_SPARE = {"server.handler": "tracees:serve", "pool.min_spare": 1, "pool.max_spare": 1}


@contextlib.contextmanager
def orphans(daemon: Daemon, words: str) -> Iterator[list[int]]:
    """Let a session leave so many orphans behind that do a deed, and end them."""
    with daemon.connect() as client:
        pids = list(map(int, client.ask(f"orphans {words}").split()))
        try:
            yield pids
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    eventually(lambda: all(map(gone, pids)), "the orphans have been reaped")


def serves(daemon: Daemon) -> None:
    """Check that newcomers are served, and that their workers' exits are taken."""
    before = daemon.metrics().total("poold_sessions_ended_total", cause="ok")
    for number in range(20):
        with daemon.connect() as client:
            assert client.ask(f"echo {number}") == f"{number}"
    eventually(lambda: daemon.metrics().total("poold_sessions_ended_total", cause="ok") >= before + 20, "their ends are seen")


def not_traced(pid: int) -> bool:
    """Say whether a process is stopped, and nobody traces it."""
    return state(pid) == "T"


# What a session leaves behind.


def test_many_orphans_that_stop(poold: Poold) -> None:
    """Six hundred orphans that are stopped under the master's eyes are let go, still stopped, and each is reaped when it ends."""
    daemon = poold(options=ONE_SPARE).start()
    with orphans(daemon, "stop 25 25") as pids:
        assert len(set(pids)) == 625
        serves(daemon)
        eventually(lambda: all(map(not_traced, pids)), "all are stopped, and traced no more")
        serves(daemon)
    daemon.metric("poold_unknown_children_reaped_total", 625)


@pytest.mark.parametrize("deed", ["execute", "trap", "end", "thread-end", "thread-stop", "clone"])
def test_orphans_that_end(poold: Poold, deed: str) -> None:
    """Whatever a traced orphan or its thread does, it comes to its end and is reaped, and a thread is not counted as a child."""
    daemon = poold(options=ONE_SPARE).start()
    with orphans(daemon, f"{deed} 4 5") as pids:
        eventually(lambda: all(map(gone, pids)), "they end by themselves")
        serves(daemon)
    daemon.metric("poold_unknown_children_reaped_total", 20)
    assert daemon.metrics().total("poold_children_failed_total") == 0


def test_orphans_that_do_it_again_and_again(poold: Poold) -> None:
    """More orphans than exits are taken in a turn, which stop under the master's eyes as often as they can, hide nobody's exit."""
    daemon = poold(options={**ONE_SPARE, "log.level": "info"}).start()
    with orphans(daemon, "again 20 15"):
        serves(daemon)
        serves(daemon)
    serves(daemon)


# A worker of ours.


def traced_worker(client: Client, words: str) -> int:
    """Let the worker of this client do a deed; return its pid."""
    pid = int(client.ask("pid"))
    client.send(f"traced {words}\n".encode())
    return pid


@pytest.mark.parametrize(
    ("deed", "status", "cause"),
    [
        ("execute", 0, "ok"),
        ("trap", -signal.SIGTRAP, "signal"),
        ("end", 3, "exit"),
        ("thread-end", 3, "exit"),
        ("thread-stop", 3, "exit"),
        ("clone", 3, "exit"),
    ],
)
def test_worker_that_is_traced(poold: Poold, deed: str, status: int, cause: str) -> None:
    """A worker that makes the master its tracer, or lets a thread do so, ends as it would have ended without."""
    daemon = poold(options=ONE_SPARE).start()
    with daemon.connect() as client:
        pid = traced_worker(client, f"{deed} 3")
        assert client.rest() == b""
    ended = daemon.event("session_ended", pid=pid)
    assert (ended["status"], ended["cause"]) == (status, cause)
    daemon.metric("poold_children_failed_total", status != 0)
    serves(daemon)


def test_worker_that_stops(poold: Poold) -> None:
    """A traced worker that stops itself stays stopped, untraced and serving, goes on when somebody says so, and ends as it wants."""
    daemon = poold(options=ONE_SPARE).start()
    with daemon.connect() as client:
        pid = traced_worker(client, "stop 3")
        eventually(lambda: not_traced(pid), "it is stopped, and traced no more")
        serves(daemon)
        daemon.metric("poold_sessions_active", 1)
        os.kill(pid, signal.SIGCONT)
        assert client.rest() == b""
    assert daemon.event("session_ended", pid=pid)["status"] == 3
    daemon.metric("poold_children_failed_total", 1, reason="exit")


def test_traced_worker_is_asked_to_end(poold: Poold) -> None:
    """A worker that traces itself all the time ends by the TERM of a drain, for which it is stopped first."""
    daemon = poold(options={**ONE_SPARE, "timeouts.kill": 600}).start()
    with daemon.connect() as client:
        traced_worker(client, "again")
        serves(daemon)
        daemon.kill(signal.SIGTERM)
        assert client.rest() == b""
        assert daemon.wait() == 0
    assert daemon.event("session_ended", cause="drained")["status"] == -signal.SIGTERM


def test_traced_worker_is_ended(poold: Poold) -> None:
    """A worker that is traced is ended by KILL like any other, and its exit is taken once."""
    daemon = poold(options=ONE_SPARE).start()
    with daemon.connect() as client:
        pid = traced_worker(client, "again")
        serves(daemon)
        os.kill(pid, signal.SIGKILL)
        assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="signal")


def test_upgrade(poold: Poold) -> None:
    """An upgrade leaves nobody stopped whom the program before has not let go."""
    daemon = poold(options={**ONE_SPARE, "log.level": "info"}).start()
    with orphans(daemon, "again 8 8") as pids:
        daemon.kill(signal.SIGUSR2)
        daemon.event("upgrade_applied")
        serves(daemon)
        for pid in pids:
            # A stop that was forgotten would last: here each of them goes on, and ends.
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: all(map(gone, pids)), "they end by a signal that stops them first")


def test_import_that_is_traced(poold: Poold) -> None:
    """A handler whose import makes its parent the tracer is checked, started and reloaded like any other."""
    daemon = poold(options=ONE_SPARE)
    (daemon.folder / "traced.py").write_text(
        "import signal\nimport tracees\nfrom cases import serve\ntracees.trace_me()\nsignal.raise_signal(signal.SIGWINCH)\n"
    )
    handlers = daemon.config.read_text().partition("path = [")[2].partition("]")[0]
    daemon.config.write_text(
        daemon.config.read_text().replace("tracees:serve", "traced:serve").replace(handlers, f'{handlers}, "{daemon.folder}"')
    )
    daemon.start()
    serves(daemon)
    assert daemon.cli("reload").returncode == 0
    serves(daemon)


# The parts.


class FakeLoop:
    """Keeps what is to be called later."""

    def __init__(self) -> None:
        self.later: list[Callback] = []

    def after(self, seconds: float, callback: Callback) -> None:
        self.later.append(callback)


def tracee(number: int) -> int:
    """Fork a process that makes this one its tracer and sends itself a signal, and wait until the signal has stopped it."""
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).ptrace(PTRACE_TRACEME, 0, None, None)
        os.kill(os.getpid(), number)
        os._exit(0)
    eventually(lambda: state(pid) == "t", f"{pid} is stopped")
    return pid


def status_of(pid: int) -> int:
    """Wait for a process, and return its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_few_are_let_go_at_a_time() -> None:
    """However many are stopped, a bounded number is let go in one turn, first come first, each with its signal."""
    loop = FakeLoop()
    tracees = Tracees(loop)  # type: ignore[arg-type] # all that is used of a loop
    pids = [tracee(signal.SIGALRM) for _ in range(RELEASES_MAX + 2)]
    for pid in pids:
        tracees.stopped(pid)
        # What was taken is not told again.
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    assert len(loop.later) == 1
    loop.later.pop()()
    assert [status_of(pid) for pid in pids[:-2]] == [-signal.SIGALRM] * RELEASES_MAX
    assert [state(pid) for pid in pids[-2:]] == ["t", "t"]
    loop.later.pop()()
    assert [status_of(pid) for pid in pids[-2:]] == [-signal.SIGALRM] * 2
    assert loop.later == []


def test_all_are_let_go() -> None:
    """Before another program takes over, everybody is let go at once."""
    tracees = Tracees(FakeLoop())  # type: ignore[arg-type] # all that is used of a loop
    pids = [tracee(signal.SIGALRM) for _ in range(RELEASES_MAX + 2)]
    for pid in pids:
        tracees.stopped(pid)
    tracees.release_all()
    assert {status_of(pid) for pid in pids} == {-signal.SIGALRM}


def test_one_that_is_killed_while_it_is_held() -> None:
    """A stopped one that is killed before it is let go is an exit and nothing else, before and after its stop was taken."""
    loop = FakeLoop()
    tracees = Tracees(loop)  # type: ignore[arg-type] # all that is used of a loop
    early, late = tracee(signal.SIGALRM), tracee(signal.SIGALRM)
    for pid, taken in ((early, False), (late, True)):
        if taken:
            tracees.stopped(pid)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: state(pid) == "Z", "it is dead")  # type: ignore[misc] # a lambda's default
        if not taken:
            tracees.stopped(pid)
        assert is_process(pid)
        tracees.forget(pid)
        assert status_of(pid) == -signal.SIGKILL
    loop.later.pop()()


def test_every_wait_status() -> None:
    """Each of the wait statuses there are says an exit status or a signal, or that it is no exit at all."""
    for wait_status in range(0x10000):
        status = exit_status(wait_status)
        if wait_status & 0x7F == 0:
            assert status == wait_status >> 8
        elif wait_status & 0x7F == 0x7F:
            assert status is None
        else:
            # The core-dump bit, 0x80, changes nothing.
            assert status == -(wait_status & 0x7F)
    assert exit_status(0xFFFF) is None

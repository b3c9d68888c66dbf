"""Signals and exits: none is lost, none is taken for another's, and each child is waited for once."""

import os
import random
import signal
import socket
from collections import Counter
from contextlib import ExitStack

import pytest

from tests.childkit import exporter_of, mold_of, spares_of
from tests.faultkit import mischievous, mishap, traced
from tests.needs import needs_strace
from tests.procfs import ORDINARY, children_of, dispositions, frozen, has_gone, has_state, open_files, zombies_of
from tests.support import Daemon, Poold
from tests.waiting import eventually

COLD = {"pool.min_spare": 0, "pool.max_spare": 0}
UNCATCHABLE = {signal.SIGKILL, signal.SIGSTOP}
# What a process blocks that has blocked everything.
NOTHING_SET = {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0}


def spawned_pids(daemon: Daemon) -> list[int]:
    """Return the pid of each child that came to life, in the log's words."""
    return sorted(event["pid"] for name in ("child_spawned", "mold_started", "exporter_started") for event in daemon.events(name))


def reaped_pids(daemon: Daemon) -> list[int]:
    """Return the pid of each child that was waited for, in the log's words.

    Trials are not told of when they start, and of the logger's end there is nobody to tell.
    """
    return sorted(event["pid"] for event in daemon.events("child_reaped") if event["kind"] not in ("trial", "logger"))


# ---- Exits -------------------------------------------------------------------------------------------------------------------


def test_exits_that_come_as_one_signal(poold: Poold) -> None:
    """Five hundred exits that the kernel announces with one SIGCHLD are all reaped, and each is counted."""
    daemon = poold(options={**COLD, "pool.max_children": 500}).start()
    clients = [daemon.connect() for _ in range(500)]
    daemon.metric("poold_children_active", 500)
    with frozen(daemon.pid):
        for client in clients:
            client.close()
        eventually(lambda: len(zombies_of(daemon.pid)) == 500, "500 zombies")
    daemon.metric("poold_children_reaped_total", 500, kind="worker")
    daemon.metric("poold_sessions_ended_total", 500, cause="ok")
    assert zombies_of(daemon.pid) == []
    assert daemon.metrics().total("poold_children_failed_total") == 0


def test_worker_that_ends_before_it_can_speak(poold: Poold) -> None:
    """A worker that ends as its first act is a stillborn worker of its own order, and its client gets another one."""
    daemon = mischievous(poold, options=COLD).start()
    mishap(daemon, "die-young")
    with daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
    _one_was_stillborn(daemon)


def test_worker_that_ends_before_the_master_looks(poold: Poold) -> None:
    """A worker whose exit and whose mold's answer reach the master together is known, not a stranger."""
    daemon = mischievous(poold, options=COLD).start()
    mishap(daemon, "die-young")
    mold, before = mold_of(daemon), set(children_of(daemon.pid))
    with ExitStack() as stack:
        with frozen(mold):
            client = stack.enter_context(daemon.connect())
            # Counted at the end of the turn that also sent the order.
            daemon.metric("poold_sessions_active", 1)
            stack.enter_context(frozen(daemon.pid))
        eventually(lambda: set(zombies_of(daemon.pid)) - before, "a dead worker")
        os.kill(daemon.pid, signal.SIGCONT)
        assert client.ask("echo hello") == "hello"
    _one_was_stillborn(daemon)


@needs_strace
def test_worker_that_ends_before_the_mold_answers(poold: Poold) -> None:
    """A worker that was reaped before anybody named its pid is found when its mold names it."""
    daemon = mischievous(poold, options=COLD).start()
    mishap(daemon, "die-young")
    with traced(daemon.folder, mold_of(daemon), "inject=sendto:delay_enter=300000:when=1"), daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
    _one_was_stillborn(daemon)


def _one_was_stillborn(daemon: Daemon) -> None:
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    daemon.metric("poold_children_reaped_total", 2, kind="worker")
    metrics = daemon.metrics()
    assert metrics.total("poold_children_spawned_total", kind="worker") == 2
    assert metrics.total("poold_children_failed_total", reason="stillborn") == 1
    assert metrics.total("poold_children_failed_total") == 1
    assert metrics["poold_unknown_children_reaped_total"] == 0


def test_orphan_of_a_session(poold: Poold) -> None:
    """What a handler left to init is reaped as unknown: its exit status means nothing, and no count but that one moves."""
    daemon = mischievous(poold, options=COLD).start()
    with daemon.connect() as client:
        client.ask("pid")
        before = daemon.metrics()
        pid = int(client.ask("orphan 70"))
        daemon.metric("poold_unknown_children_reaped_total", 1)
        assert daemon.event("unknown_child_reaped", pid=pid)["status"] == 70
        after = daemon.metrics()
        for name in ("poold_children", "poold_children_spawned_total", "poold_children_reaped_total", "poold_children_failed_total"):
            assert after.total(name) == before.total(name)
        assert client.ask("echo undisturbed") == "undisturbed"
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_process_that_outlives_its_session(poold: Poold) -> None:
    """A process that a handler forked lives on when the session ends by itself, and is reaped as unknown when it ends."""
    daemon = poold().start()
    with daemon.connect() as client:
        pid = int(client.ask("fork"))
        client.socket.shutdown(socket.SHUT_WR)
        daemon.metric("poold_sessions_ended_total", 1, cause="ok")
        assert pid in children_of(daemon.pid)
        os.kill(pid, signal.SIGKILL)
        daemon.metric("poold_unknown_children_reaped_total", 1)
        assert client.rest() == b""
    assert daemon.metrics().total("poold_children_failed_total") == 0


def test_orphan_of_the_mold(poold: Poold) -> None:
    """What the handler's import left to init is reaped as unknown, and the mold goes on."""
    daemon = mischievous(poold, "orphan").start()
    daemon.metric("poold_unknown_children_reaped_total", 1)
    assert daemon.event("unknown_child_reaped")["status"] == 3
    with daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
    assert daemon.metrics()["poold_mold_starts_total"] == 1


def test_orphan_while_a_worker_is_ordered(poold: Poold) -> None:
    """An unknown exit is not taken for that of a worker that is on order."""
    daemon = mischievous(poold, options=COLD).start()
    with daemon.connect() as one, ExitStack() as stack:
        assert one.ask("echo hello") == "hello"
        with frozen(mold_of(daemon)):
            two = stack.enter_context(daemon.connect())
            daemon.metric("poold_sessions_active", 2)
            has_gone(int(one.ask("orphan 1")))
        assert two.ask("echo hello") == "hello"
    daemon.metric("poold_sessions_ended_total", 2, cause="ok")
    daemon.metric("poold_unknown_children_reaped_total", 1)
    metrics = daemon.metrics()
    assert metrics.total("poold_children_spawned_total", kind="worker") == 2
    assert metrics.total("poold_children_failed_total") == 0


def test_each_child_leaves_the_table_once(poold: Poold) -> None:
    """When sessions end, spares die and the stop comes all at once, each child is reaped once and each session ends once."""
    daemon = poold(options={"pool.min_spare": 8}).start()
    clients = [daemon.connect() for _ in range(8)]
    daemon.metric("poold_children_active", 8)
    spares = spares_of(daemon, 8)
    with frozen(daemon.pid):
        for client in clients[:4]:
            client.close()
        for pid in spares[:4]:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(zombies_of(daemon.pid)) == 8, "8 zombies")
        os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait() == 0
    for client in clients[4:]:
        assert client.rest() == b""
        client.close()
    assert reaped_pids(daemon) == spawned_pids(daemon)
    assert len(set(reaped_pids(daemon))) == 8 + 8 + 2
    ended = daemon.events("session_ended")
    assert sorted(event["session"] for event in ended) == list(range(1, 9))
    assert Counter(event["cause"] for event in ended) == {"ok": 4, "drained": 4}


# ---- What poold is started with, and what it passes on -----------------------------------------------------------------------


def test_started_with_every_signal_ignored(poold: Poold) -> None:
    """Ignored signals, SIGCHLD among them, that poold was started with are ignored no more: exits are seen, children start clean."""
    ignore = "import signal\nfor number in signal.valid_signals() - {9, 19}: signal.signal(number, signal.SIG_IGN)"
    daemon = poold(options={"pool.min_spare": 1}).start(prelude=ignore)
    [spare] = spares_of(daemon, 1)
    assert dispositions(daemon.pid)["SigIgn"] == 0
    # A mold catches this one, so that it does not die of what it says; its workers do not.
    assert dispositions(mold_of(daemon)) == NOTHING_SET | {"SigCgt": 1 << (signal.SIGPIPE - 1)}
    assert dispositions(spare) == NOTHING_SET
    with daemon.connect() as client:
        client.send(b"exit 7\n")
        assert client.rest() == b""
    assert daemon.event("session_ended")["status"] == 7
    assert daemon.events("exit_status_lost") == []
    assert daemon.stop() == 0


def test_started_with_every_signal_blocked(poold: Poold) -> None:
    """A mask that poold was started with is set, not added to: nothing is blocked in it or its children, and TERM stops it."""
    block = "import signal\nsignal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())"
    daemon = poold(options={"pool.min_spare": 1}).start(prelude=block)
    [spare] = spares_of(daemon, 1)
    for pid in (daemon.pid, mold_of(daemon), spare, exporter_of(daemon)):
        assert dispositions(pid)["SigBlk"] == 0
    assert daemon.stop() == 0


def test_signal_that_came_while_it_was_blocked(poold: Poold) -> None:
    """A TERM that waited behind a mask from before poold's start is obeyed."""
    prelude = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\nos.kill(os.getpid(), signal.SIGTERM)"
    daemon = poold().start(prelude=prelude, wait=False)
    assert daemon.wait() == 0
    assert daemon.events("stopping")
    assert reaped_pids(daemon) == spawned_pids(daemon)


def test_programs_of_a_handler_start_clean(poold: Poold) -> None:
    """A program that a handler starts carelessly ignores and blocks nothing: SIGPIPE ends it as anywhere."""
    daemon = mischievous(poold).start()
    with daemon.connect() as client:
        for mask in ("SigIgn", "SigBlk"):
            assert int(client.ask(f"output grep {mask} /proc/self/status").split()[1], 16) & ORDINARY == 0


def test_command_starts_clean(poold: Poold) -> None:
    """A command ignores and blocks nothing."""
    daemon = poold(options={"server.handler": None, "server.command": ["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"]}).start()
    with daemon.connect() as client:
        masks = [int(line.split()[1], 16) for line in client.rest().decode().splitlines()]
    assert [mask & ORDINARY for mask in masks] == [0, 0]


def test_client_that_leaves_a_command(poold: Poold) -> None:
    """A command that writes to a client that has left dies of SIGPIPE, and that is the client's doing: nothing failed."""
    command = ["sh", "-c", "cat; while echo more; do :; done; kill -9 $$"]
    daemon = poold(options={"server.handler": None, "server.command": command}).start()
    with daemon.connect() as client:
        assert client.ask("hello") == "hello"
    daemon.metric("poold_sessions_ended_total", 1, cause="client_gone")
    assert daemon.event("session_ended")["status"] == -signal.SIGPIPE
    assert daemon.metrics().total("poold_children_failed_total") == 0


def test_client_that_leaves_a_handler(poold: Poold) -> None:
    """A handler that writes to a client that has left gets BrokenPipeError or a reset, not a signal: nothing failed."""
    daemon = poold().start()
    with daemon.connect() as client:
        client.send(b"flood\n")
        assert client.socket.recv(1) == b"x"
    daemon.metric("poold_sessions_ended_total", 1, cause="client_gone")
    assert daemon.event("session_ended")["status"] == 1
    assert daemon.metrics().total("poold_children_failed_total") == 0


# ---- At the worst moment -----------------------------------------------------------------------------------------------------


@needs_strace
def test_interrupted_calls(poold: Poold) -> None:
    """When every other call that can be interrupted is, in the master and all its children, nothing is lost and nothing raises."""
    calls = ("accept4", "epoll_wait", "recvfrom", "recvmsg", "sendmsg", "sendto", "wait4", "waitid", "write")
    daemon = poold().start(prelude="import signal\nos.kill(os.getpid(), signal.SIGSTOP)", wait=False, laws=False)
    has_state(daemon.pid, "T")
    with traced(daemon.folder, daemon.pid, *(f"inject={call}:error=EINTR:when=1+2" for call in calls), follow=True) as tracer:
        os.kill(daemon.pid, signal.SIGCONT)
        daemon.ready()
        for _ in range(3):
            with daemon.connect() as client:
                assert client.ask("echo hello") == "hello"
                client.send(b"exit 7\n")
                assert client.rest() == b""
        daemon.metric("poold_sessions_ended_total", 3, cause="exit")
        assert daemon.stop() == 0
        assert [call for call in calls if not tracer.lines(f"{call}(", "EINTR", "INJECTED")] == []
    assert "Traceback" not in daemon.log.read_text()
    assert reaped_pids(daemon) == spawned_pids(daemon)


@needs_strace
@pytest.mark.parametrize("careless", [False, True], ids=["default", "caught-by-the-handler"])
def test_signal_between_clone_and_set_up(poold: Poold, careless: bool) -> None:
    """A TERM that reaches a worker before it is one's own process ends it, and nobody but it; its client gets another worker."""
    daemon = mischievous(poold, *(["catch-term"] if careless else []), options=COLD).start()
    mold, before = mold_of(daemon), set(children_of(daemon.pid))
    with ExitStack() as stack:
        # The tracer holds the newborn at its first step until it is itself ended; the delay is only never to be reached.
        with traced(daemon.folder, mold, "inject=setsid:delay_enter=60000000:when=1", follow=True):
            client = stack.enter_context(daemon.connect())
            [newborn] = eventually(lambda: set(children_of(daemon.pid)) - before, "a clone")
            has_state(newborn, "t")
            # SIGPIPE, which the mold catches, is the first thing that it takes back.
            assert dispositions(newborn)["SigBlk"] == dispositions(newborn)["SigCgt"] & ~(1 << (signal.SIGPIPE - 1)) == 0
            os.kill(newborn, signal.SIGTERM)
        assert client.ask("pid") != str(newborn)
        failed = daemon.event("child_failed", pid=newborn)
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    assert (failed["reason"], failed["status"]) == ("stillborn", -signal.SIGTERM)
    assert daemon.events("stopping") == []


def test_signals_of_children_are_not_the_masters(poold: Poold) -> None:
    """A signal sent to a child never shows in the master: they share no descriptor that could tell of it."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    with daemon.connect() as client:
        serving = int(client.ask("pid"))
        [spare] = spares_of(daemon, 1)
        sockets = {file for file in open_files(daemon.pid).values() if file.startswith("socket:")}
        for pid, number in ((mold_of(daemon), signal.SIGHUP), (spare, signal.SIGUSR2), (serving, signal.SIGHUP)):
            assert sockets.isdisjoint(open_files(pid).values())
            os.kill(pid, number)
        assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="signal")
    daemon.metric("poold_mold_starts_total", 2)
    with daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
    taken = ("reload_started", "upgrade_started", "draining", "stopping")
    assert [name for name in taken if daemon.events(name)] == []


def test_wakeup_descriptor_is_not_inherited(poold: Poold) -> None:
    """A worker has no wakeup descriptor, even if the handler's import gave the mold one: its signals would wake its siblings."""
    daemon = mischievous(poold, "wakeup").start()
    with daemon.connect() as client:
        assert client.ask("wakeup") == "-1"


@needs_strace
@pytest.mark.parametrize("number", [signal.SIGCHLD, signal.SIGTERM], ids=["child", "stop"])
def test_signal_just_before_the_wait(poold: Poold, number: signal.Signals) -> None:
    """A signal that comes between the last look and the wait ends the wait, although nothing else would."""
    daemon = poold(options={"pool.min_spare": 1}).start(laws=False)
    [spare] = spares_of(daemon, 1)
    with traced(daemon.folder, daemon.pid, "inject=epoll_wait:delay_enter=150000"):
        has_state(daemon.pid, "t")
        if number == signal.SIGCHLD:
            os.kill(spare, signal.SIGKILL)
            has_gone(spare)
        else:
            os.kill(daemon.pid, number)
            assert daemon.wait() == 0


# ---- Stops -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_second_stop_does_not_wait(poold: Poold, first: signal.Signals, second: signal.Signals) -> None:
    """TERM or INT lets sessions finish; a second one, or QUIT, ends them now, and for that cause."""
    daemon = poold(options={"timeouts.drain": 600, "timeouts.kill": 600}).start()
    with daemon.connect() as client:
        client.ask("pid")
        daemon.kill(first)
        daemon.event("draining", sessions=1)
        assert client.ask("echo still here") == "still here"
        daemon.kill(second)
        assert daemon.wait() == 0
        assert client.rest() == b""
    [ended] = daemon.events("session_ended")
    assert (ended["cause"], ended["status"]) == ("killed", -signal.SIGTERM)


@pytest.mark.parametrize("order", ["TERM TERM TERM", "INT TERM INT", "QUIT TERM", "TERM QUIT INT"])
def test_one_stop_more_kills(poold: Poold, order: str) -> None:
    """Sessions that TERM does not impress are killed by one stop more, long before their time is up."""
    daemon = poold(options={"timeouts.drain": 600, "timeouts.kill": 600}).start()
    *before, last = (signal.Signals[f"SIG{name}"] for name in order.split())
    with daemon.connect() as client:
        assert client.ask("ignore_term") == "ok"
        for number in before:
            mark = daemon.mark()
            daemon.kill(number)
            eventually(lambda mark=mark: daemon.events("draining", after=mark) or daemon.events("stopping", after=mark), "it is obeyed")
        assert client.ask("echo still here") == "still here"
        daemon.kill(last)
        assert daemon.wait() == 0
        assert client.rest() == b""
    [ended] = daemon.events("session_ended")
    assert (ended["cause"], ended["status"]) == ("killed", -signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_stop_ends_sessions(poold: Poold, number: signal.Signals) -> None:
    """A stop ends what is served, with the cause that belongs to the signal, and poold exits with 0."""
    daemon = poold().start()
    with daemon.connect() as client:
        client.ask("pid")
        daemon.kill(number)
        assert daemon.wait() == 0
        assert client.rest() == b""
    [ended] = daemon.events("session_ended")
    assert ended["cause"] == ("killed" if number == signal.SIGQUIT else "drained")
    assert reaped_pids(daemon) == spawned_pids(daemon)


def test_stop_now_kills_what_does_not_stop(poold: Poold) -> None:
    """After QUIT a session that ignores TERM is killed when its time is up."""
    daemon = poold(options={"timeouts.kill": 0.2}).start()
    with daemon.connect() as client:
        assert client.ask("ignore_term") == "ok"
        daemon.kill(signal.SIGQUIT)
        assert daemon.wait() == 0
        assert client.rest() == b""
    [ended] = daemon.events("session_ended")
    assert (ended["cause"], ended["status"]) == ("killed", -signal.SIGKILL)


@pytest.mark.parametrize("seed", range(3))
def test_signals_in_any_order(poold: Poold, seed: int) -> None:
    """Whatever comes in whatever order: one end, exit status 0, no traceback, each session and each child accounted for once."""
    chance = random.Random(seed)
    daemon = poold(options={"timeouts.drain": 600, "timeouts.kill": 600}).start()
    with ExitStack() as clients:
        for _ in range(6):
            client = clients.enter_context(daemon.connect())
            client.ask(chance.choice(["ignore_term", "pid"]))
        names = ["SIGHUP", "SIGUSR1", "SIGALRM", "SIGCHLD", "SIGWINCH", "SIGPIPE", "SIGTERM", "SIGINT", "SIGQUIT"]

        def stopped() -> bool:
            assert daemon.process is not None
            if daemon.process.poll() is None:
                daemon.kill(signal.Signals[chance.choice(names)])
                return False
            return True

        eventually(stopped, "the end")
    assert daemon.wait() == 0
    assert "Traceback" not in daemon.log.read_text()
    assert sorted(event["session"] for event in daemon.events("session_ended")) == list(range(1, 7))
    assert reaped_pids(daemon) == spawned_pids(daemon)


def test_signal_to_the_group(poold: Poold) -> None:
    """A signal to poold's process group, as a terminal's Ctrl-C, reaches the master alone: children lead groups of their own."""
    daemon = poold(options={"pool.min_spare": 1}).start(prelude="os.setpgid(0, 0)")
    with daemon.connect() as client:
        client.ask("ignore_term")
        spares_of(daemon, 1)
        children = children_of(daemon.pid)
        assert len(children) == 5
        assert all(os.getpgid(pid) == pid == os.getsid(pid) for pid in children)
        os.killpg(daemon.pid, signal.SIGINT)
        daemon.event("stopping", sessions=1)
        assert client.ask("echo still here") == "still here"
        os.killpg(daemon.pid, signal.SIGINT)
        assert daemon.wait() == 0
    assert [event["cause"] for event in daemon.events("session_ended")] == ["drained"]


def test_signal_to_every_process(poold: Poold) -> None:
    """TERM to the master and all its children at once, as a service manager may send it, ends each session once and exits with 0."""
    daemon = poold().start()
    clients = [daemon.connect() for _ in range(4)]
    for client in clients:
        client.ask("pid")
    for pid in (*children_of(daemon.pid), daemon.pid):
        os.kill(pid, signal.SIGTERM)
    assert daemon.wait() == 0
    for client in clients:
        assert client.rest() == b""
        client.close()
    ended = daemon.events("session_ended")
    assert sorted(event["session"] for event in ended) == [1, 2, 3, 4]
    assert {event["cause"] for event in ended} <= {"drained", "signal"}
    assert reaped_pids(daemon) == spawned_pids(daemon)

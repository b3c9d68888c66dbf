"""The cap, the spares, what happens when it is full, and workers that serve several."""

import json
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.childkit import mold_of
from tests.faultkit import traced
from tests.needs import needs_strace
from tests.procfs import frozen, title
from tests.support import Client, Poold
from tests.waiting import eventually


def test_spares_are_refilled(poold: Poold) -> None:
    """As many spares as asked for wait, each by its title, and one that was used is replaced."""
    daemon = poold(options={"pool.min_spare": 3}).start()
    daemon.metric("poold_children", 3, kind="worker", state="spare")
    spares = [row["pid"] for row in daemon.children("worker")]
    assert {title(pid) for pid in spares} == {"poold: spare"}
    with daemon.connect() as client:
        assert int(client.ask("pid")) in spares
        daemon.metric("poold_children", 4, kind="worker")


def test_cold_path(poold: Poold) -> None:
    """Without spares each connection gets a worker that is cloned for it."""
    daemon = poold(options={"pool.min_spare": 0, "pool.max_spare": 0}).start()
    daemon.metric("poold_children", 0, kind="worker")
    with daemon.connect() as one, daemon.connect() as two:
        assert one.ask("pid") != two.ask("pid")
    daemon.metric("poold_children_reaped_total", 2, kind="worker")
    daemon.metric("poold_children", 0, kind="worker")


@needs_strace
def test_the_master_holds_off_in_a_crowd_alone(poold: Poold) -> None:
    """With many who wait for workers that are on their way the master lets things happen for a while; with one it looks at once."""
    daemon = poold(options={"pool.min_spare": 0, "pool.max_spare": 0}).start()
    with traced(daemon.folder, daemon.pid, "trace=clock_nanosleep") as tracer, ExitStack() as stack:
        with daemon.connect() as one:
            assert one.ask("echo alone") == "alone"
        assert not tracer.lines("clock_nanosleep")
        with frozen(mold_of(daemon)):
            crowd = [stack.enter_context(daemon.connect()) for _ in range(8)]
            eventually(lambda: tracer.lines("clock_nanosleep"), "the master holds off")
        assert [client.ask("echo all") for client in crowd] == ["all"] * 8


def test_full_waits_in_the_backlog(poold: Poold) -> None:
    """At the cap a newcomer waits in the kernel, not refused, and is served when a session ends."""
    daemon = poold(options={"pool.max_children": 2, "pool.min_spare": 1}).start()
    one, two, three = (daemon.connect() for _ in range(3))
    with one, two, three:
        assert one.ask("pid") != two.ask("pid")
        daemon.metric("poold_accepting", 0)
        daemon.metric("poold_backlog", 1)
        assert daemon.metrics().total("poold_connections_accepted_total") == 2
        three.socket.sendall(b"echo at last\n")
        one.finish()
        assert three.line() == "at last"
        assert daemon.metrics().total("poold_connections_refused_total") == 0


def test_unix_backlog(poold: Poold, tmp_path: Path) -> None:
    """The queue of a unix listener is measured too, and its socket file has the mode that was asked for."""
    path = tmp_path / "s"
    listener = f'[[listener]]\naddress = "unix://{path}"\nmode = "0606"\nbacklog = 17\n'
    daemon = poold(options={"pool.max_children": 1}, settings=listener).start()
    assert path.stat().st_mode & 0o777 == 0o606
    with Client(str(path)) as one, Client(str(path)) as two:
        assert one.ask("echo served") == "served"
        daemon.metric("poold_backlog", 1)
        assert daemon.metrics().total("poold_backlog_limit", listener=f"unix://{path}") == 17
        one.finish()
        assert two.ask("echo next") == "next"


def test_full_refuses_with_a_message(poold: Poold) -> None:
    """With when_full = refuse a newcomer at the cap gets the message and a clean end, whatever it has sent."""
    options = {"pool.max_children": 1, "pool.when_full": "refuse", "pool.refuse_message": "come back later\n"}
    daemon = poold(options=options).start()
    with daemon.connect() as one:
        one.ask("pid")
        for _ in range(3):
            with daemon.connect() as refused:
                refused.send(b"x" * 100_000)
                assert refused.rest() == b"come back later\n"
        daemon.metric("poold_connections_refused_total", 3, reason="full")
        assert one.ask("echo undisturbed") == "undisturbed"
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_cap_is_never_exceeded(poold: Poold) -> None:
    """A burst of clients over the cap is served, a cap's worth at a time."""
    daemon = poold(options={"pool.max_children": 5, "pool.min_spare": 2}).start()
    clients = [daemon.connect() for _ in range(40)]
    for client in clients:
        client.send(b"pid\n")
    for client in clients:
        assert client.line()
        client.close()
    daemon.metric("poold_sessions_ended_total", 40)
    # That the cap held is the fixture's law, scraped all the while.
    assert daemon.keeper is not None
    assert daemon.metrics()["poold_children_max"] == 5


@pytest.mark.parametrize(("limit", "served"), [(3, [3, 3, 1]), (0, [7])])
def test_connections_per_child(poold: Poold, limit: int, served: list[int]) -> None:
    """A worker may serve several connections, one after the other, and exits after as many as it may."""
    daemon = poold(options={"pool.max_children": 1, "pool.connections_per_child": limit}).start()
    pids = []
    for _ in range(7):
        with daemon.connect() as client:
            pids.append(client.ask("pid"))
            assert client.finish() == b""
    daemon.metric("poold_sessions_ended_total", 7, cause="ok")
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == served


def test_cause_of_each_session_of_one_worker(poold: Poold) -> None:
    """With reused workers each session has its own cause, by the worker's report or by its exit."""
    daemon = poold(options={"pool.max_children": 1, "pool.connections_per_child": 0}).start()
    for order in ("raise error", "raise broken", "sysexit 3"):
        with daemon.connect() as client:
            client.send(order.encode() + b"\n")
            client.rest()
    with daemon.connect() as client:
        client.send(b"signal 9\n")
        client.rest()
    daemon.metric("poold_sessions_ended_total", 2, cause="exit")
    daemon.metric("poold_sessions_ended_total", 1, cause="client_gone")
    daemon.metric("poold_sessions_ended_total", 1, cause="signal")
    daemon.metric("poold_children_failed_total", 1, reason="signal")
    assert daemon.metrics().total("poold_children_failed_total") == 1


def test_descriptors_return_to_their_baseline(poold: Poold) -> None:
    """After a thousand sessions the master has as many descriptors as before, and one thread."""
    daemon = poold(options={"log.level": "warning", "pool.min_spare": 4}).start()
    daemon.metric("poold_children", 4, kind="worker", state="spare")
    fds = f"/proc/{daemon.pid}/fd"
    before = len(os.listdir(fds))
    for _ in range(100):
        clients = [daemon.connect() for _ in range(10)]
        for client in clients:
            client.send(b"echo x\n")
        for client in clients:
            assert client.line() == "x"
            client.close()
    daemon.metric("poold_sessions_ended_total", 1000, cause="ok")
    daemon.metric("poold_children", 4, kind="worker", state="spare")
    eventually(lambda: len(os.listdir(fds)) == before, "the baseline of descriptors")
    assert len(os.listdir(f"/proc/{daemon.pid}/task")) == 1


def test_held_sessions_cost_a_descriptor_each(poold: Poold) -> None:
    """The master keeps the activity page of a session that is being served, and nothing else, and for no longer."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    daemon.metric("poold_children", 1, kind="worker", state="spare")
    fds = f"/proc/{daemon.pid}/fd"
    before = len(os.listdir(fds))
    clients = [daemon.connect() for _ in range(50)]
    assert len({client.ask("pid") for client in clients}) == 50
    daemon.metric("poold_children_active", 50)
    eventually(lambda: len(os.listdir(fds)) == before + 50, "a page for each session")
    for client in clients:
        client.close()
    eventually(lambda: len(os.listdir(fds)) == before, "the baseline of descriptors")


def test_kill_ladder_ends_with_kill(poold: Poold) -> None:
    """A session that ignores TERM is killed after timeouts.kill, and what it forked in its group goes with it."""
    daemon = poold(options={"timeouts.kill": 0.3}).start()
    with daemon.connect() as client:
        client.ask("ignore_term")
        grandchild = int(client.ask("fork"))
        assert daemon.stop() == 0
        assert not os.path.exists(f"/proc/{grandchild}") or eventually(
            lambda: not os.path.exists(f"/proc/{grandchild}") or _zombie(grandchild)
        )
    assert daemon.events("child_killed")
    ended = daemon.events("session_ended")
    assert [event["cause"] for event in ended] == ["drained"]


def _zombie(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "Z"


def test_grandchild_outlives_a_session_that_ends_by_itself(poold: Poold) -> None:
    """What a handler forked is left alone when its session ends by itself, and reaped as unknown when it ends."""
    daemon = poold().start()
    with daemon.connect() as client:
        grandchild = int(client.ask("fork"))
        assert client.ask("echo on") == "on"
        client.send(b"exit 0\n")
        daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    assert not _zombie(grandchild)
    os.kill(grandchild, 9)
    daemon.metric("poold_unknown_children_reaped_total", 1)


def test_sources_of_late_output(poold: Poold) -> None:
    """What a handler left in its writer reaches the client after it returned, and what it prints goes to the log's stream."""
    daemon = poold().start()
    with daemon.connect() as client:
        client.send(b"late the last words\n")
        client.ask("print to the log")
        assert client.finish() == b"the last words"
    eventually(lambda: daemon.log.read_text().count("to the log") == 2, "printed text in the log")


def test_descriptors_of_echo(poold: Poold) -> None:
    """A worker has 0, 1, 2, its activity page, and its connection or, as a spare, its channel; nothing else."""
    daemon = poold(options={"server.handler": "poold.handlers.echo:serve", "pool.min_spare": 1}).start()
    with daemon.connect() as client:
        assert client.ask("hello") == "hello"
        [serving] = eventually(lambda: [row["pid"] for row in daemon.children("worker") if row["state"] == "serving"])
        daemon.metric("poold_children", 1, kind="worker", state="spare")
        [spare] = [row["pid"] for row in daemon.children("worker") if row["state"] == "spare"]
        for pid in (serving, spare):
            files = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
            assert files.pop(0) == "/dev/null"
            output = files.pop(1)
            assert (output, output.startswith("pipe:")) == (files.pop(2), True)
            memory, remaining = sorted(files.values())
            assert memory.startswith("/memfd:poold-activity")
            assert remaining.startswith("socket:")
        local = client.socket.getsockname()
        assert title(serving) == f"poold: echo {local[0]}:{local[1]}"


def test_status_and_ps(poold: Poold) -> None:
    """`poold status` and `poold ps` show what is going on, for people and as JSON."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    with daemon.connect() as client:
        pid = int(client.ask("pid"))
        assert client.ask("status in the \x1b[31mlobby") == "ok"
        [row] = [row for row in daemon.children("worker") if row["pid"] == pid]
        assert row["status"] == "in the [31mlobby"
        assert row["state"] == "serving"
        assert row["listener"] == "main"
        assert row["peer"] == "{}:{}".format(*client.socket.getsockname())
        assert row["memory_bytes"] > 1 << 20
        assert title(pid).endswith("in the [31mlobby")
        status = daemon.ask("status")
        assert (status["phase"], status["sessions"]["active"], status["accepting"]) == ("running", 1, True)
        text = daemon.cli("status", "-c", str(daemon.config)).stdout
        assert "1 active of at most 256" in text
        assert f"tcp://127.0.0.1:{daemon.address[1]}, 1 accepted" in text
        table = daemon.cli("ps", "-c", str(daemon.config)).stdout.splitlines()
        assert table[0].split()[:3] == ["PID", "KIND", "STATE"]
        assert any(line.split()[:3] == [str(pid), "worker", "serving"] for line in table)
        assert eventually(lambda: title(daemon.pid) == "poold: master [1/256]")


def test_nobody_answers(poold: Poold) -> None:
    """Commands that ask a daemon say so and exit with 3 when there is none."""
    daemon = poold()
    done = daemon.cli("status", "--socket", str(daemon.control))
    assert done.returncode == 3
    assert "no daemon answers" in done.stderr


def test_control_socket_is_strict(poold: Poold) -> None:
    """The control socket is its owner's alone, refuses nonsense politely and survives it."""
    daemon = poold().start()
    assert os.stat(daemon.control).st_mode & 0o777 == 0o600
    for junk in (b"\n", b"[" * 4000 + b"\n", b"\xff\x00\n", b'{"verb": 3}\n', b'{"verb": "nothing"}\n', b"x" * 5000):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(30)
            client.connect(str(daemon.control))
            client.sendall(junk)
            answer = json.loads(client.makefile().readline())
            assert answer["ok"] is False
    silent = [Client(str(daemon.control)) for _ in range(20)]
    assert daemon.ask("status")["phase"] == "running"
    for client in silent:
        client.close()

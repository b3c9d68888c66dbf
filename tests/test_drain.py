"""The end: queued clients are served, sessions are told and given their time, and everybody is reaped; exit 0."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.support import Client, Poold, free_port
from tests.waiting import eventually


def test_sessions_finish_by_themselves(poold: Poold) -> None:
    """A drain lets a session finish, which then counts as ok; the session can see that a drain began."""
    daemon = poold(options={"timeouts.drain": 60}).start()
    with daemon.connect() as client:
        assert json.loads(client.ask("facts"))["stopping"] is False
        daemon.kill(signal.SIGTERM)
        daemon.metric("poold_draining", 1)
        assert json.loads(client.ask("facts"))["stopping"] is True
        assert daemon.get("/readyz") == 503
        assert daemon.get("/healthz") == 200
        status = daemon.ask("status")
        assert (status["phase"], status["sessions"]["active"]) == ("draining", 1)
        assert client.ask("echo my last words") == "my last words"
        client.finish()
    assert daemon.wait() == 0
    assert [event["cause"] for event in daemon.events("session_ended")] == ["ok"]
    assert not daemon.events("drain_overdue")


def test_time_is_up(poold: Poold) -> None:
    """Sessions that do not finish in time get TERM, then KILL, and count as drained."""
    daemon = poold(options={"timeouts.drain": 0.3, "timeouts.kill": 0.3}).start()
    with daemon.connect() as one, daemon.connect() as two:
        one.ask("pid")
        two.ask("ignore_term")
        daemon.kill(signal.SIGTERM)
        assert one.rest() == two.rest() == b""
        assert daemon.wait() == 0
    assert [event["cause"] for event in daemon.events("session_ended")] == ["drained", "drained"]
    assert sorted(event["status"] for event in daemon.events("session_ended")) == [-15, -9] or sorted(
        event["status"] for event in daemon.events("session_ended")
    ) == [-15, -15]
    assert len(daemon.events("child_killed")) == 1
    assert not daemon.events("child_failed")


def test_nobody_there(poold: Poold) -> None:
    """With no session, no spare and nobody in the queue, there is nothing to wait for."""
    daemon = poold(options={"timeouts.drain": 3600, "pool.min_spare": 0, "pool.max_spare": 0}).start()
    daemon.kill(signal.SIGTERM)
    assert daemon.wait() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_second_signal_stops_now(poold: Poold, second: signal.Signals) -> None:
    """A second signal during a drain ends the sessions at once; they count as killed."""
    daemon = poold(options={"timeouts.drain": 600}).start()
    with daemon.connect() as client:
        client.ask("pid")
        daemon.kill(signal.SIGINT)
        daemon.event("draining")
        daemon.kill(second)
        assert client.rest() == b""
    assert daemon.wait() == 0
    assert [event["cause"] for event in daemon.events("session_ended")] == ["killed"]


def test_queued_clients_are_served(poold: Poold) -> None:
    """Clients that waited in the backlog of poold's own listener when the drain began are served before it is closed."""
    port = free_port()
    options = {"pool.max_children": 2, "pool.min_spare": 0, "pool.max_spare": 0, "timeouts.drain": 60}
    daemon = poold(options=options, settings=f'[[listener]]\naddress = "tcp://127.0.0.1:{port}"\n').start()
    address = ("127.0.0.1", port)
    with Client(address) as holder, Client(address) as other:
        holder.ask("pid")
        other.ask("pid")
        queued = [Client(address) for _ in range(6)]
        for client in queued:
            client.send(b"echo served\n")
        daemon.kill(signal.SIGTERM)
        daemon.event("draining")
        other.finish()
        for client in queued:
            assert client.line() == "served"
            client.close()
        daemon.event("listener_closed")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        assert holder.ask("echo me too") == "me too"
        holder.finish()
    assert daemon.wait() == 0
    assert {event["cause"] for event in daemon.events("session_ended")} == {"ok"}


def test_a_lent_listener_is_served_while_the_drain_lasts(poold: Poold) -> None:
    """Newcomers at the service manager's own socket are served during a drain, and those after it wait for the next start."""
    daemon = poold(options={"timeouts.drain": 60}).start()
    with daemon.connect() as holder:
        holder.ask("pid")
        daemon.kill(signal.SIGTERM)
        daemon.event("draining")
        with daemon.connect() as newcomer:
            assert newcomer.ask("echo welcome") == "welcome"
        holder.finish()
    assert daemon.wait() == 0
    with daemon.connect() as early:
        early.send(b"echo patience\n")
        again = poold()
        again.passed["main"].close()
        again.passed["main"] = again.listener = daemon.listener
        again.start()
        assert early.line() == "patience"
        early.finish()


def test_exporter_answers_to_the_end(poold: Poold) -> None:
    """While sessions are being ended the exporter still answers."""
    daemon = poold(options={"timeouts.drain": 0, "timeouts.kill": 1}).start()
    with daemon.connect() as client:
        client.ask("ignore_term")
        daemon.kill(signal.SIGTERM)
        daemon.metric("poold_children", 1, kind="worker", state="terminating")
        assert daemon.metrics()["poold_draining"] == 1
        assert client.rest() == b""
    assert daemon.wait() == 0


def test_storm_of_exits_does_not_hurry_the_ladder(poold: Poold) -> None:
    """However many children end during a drain, KILL comes by the clock."""
    daemon = poold(options={"timeouts.drain": 0, "timeouts.kill": 2, "log.level": "info", "pool.min_spare": 1}).start()
    clients = [daemon.connect() for _ in range(60)]
    for client in clients:
        client.ask("pid")
    with daemon.connect() as stubborn:
        stubborn.ask("ignore_term")
        daemon.kill(signal.SIGTERM)
        for client in clients:
            assert client.rest() == b""
            client.close()
        assert stubborn.rest() == b""
    assert daemon.wait() == 0
    stopping, killed = daemon.event("stopping"), daemon.event("child_killed")
    assert _seconds(killed["time"]) - _seconds(stopping["time"]) >= 1.9


def _seconds(stamp: str) -> float:
    hours, minutes, seconds = stamp.rstrip("Z").partition("T")[2].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def test_poold_stop(poold: Poold) -> None:
    """`poold stop` drains, shows how far it is, and returns when the daemon is gone; --now does not wait for sessions."""
    daemon = poold(options={"timeouts.drain": 60}).start()
    with daemon.connect() as client:
        client.ask("pid")
        command = [sys.executable, "-m", "poold", "stop", "-c", str(daemon.config)]
        stopping = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert stopping.stderr is not None
        assert stopping.stderr.readline().startswith("draining: 1 sessions left, at most ")
        assert stopping.poll() is None
        client.finish()
        assert stopping.wait(30) == 0
        stopping.stderr.close()
    assert daemon.wait() == 0
    other = poold(options={"timeouts.drain": 600}).start()
    with other.connect() as client:
        client.ask("pid")
        assert other.cli("stop", "--now", "-c", str(other.config)).returncode == 0
        assert client.rest() == b""
    assert other.wait() == 0
    assert [event["cause"] for event in other.events("session_ended")] == ["killed"]
    assert other.cli("stop", "-c", str(other.config)).returncode == 3


def test_drain_while_a_mold_imports(poold: Poold) -> None:
    """A stop during the start, and during a reload, ends cleanly and leaves nothing."""
    daemon = poold()
    file = daemon.folder / "mood"
    file.write_text("hang")
    daemon.write(options={"server.handler": "moody:serve", "server.environment": {"MOOD": str(file)}})
    daemon.start(wait=False)
    daemon.event("mold_started")
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait() == 0
    file.write_text("good")
    daemon.start(laws=False)
    file.write_text("hang")
    daemon.kill(signal.SIGHUP)
    eventually(lambda: len(daemon.events("mold_started", generation=2)) == 1)
    daemon.kill(signal.SIGTERM)
    assert daemon.wait() == 0
    assert daemon.events("reload_refused", reason="poold is stopping")

"""What the service manager hears, on a notify socket that the test owns."""

import os
import signal
import time

from tests.support import Daemon, Poold
from tests.waiting import eventually


def heard(daemon: Daemon, key: str) -> list[str]:
    """Return every value of a field so far, in order."""
    return [message[key] for message in daemon.notify.poll() if key in message]


def test_ready_means_served(poold: Poold) -> None:
    """READY=1 comes with the master's pid and a status, and a client that connects then is served by a spare that is there."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    [ready] = [message for message in daemon.notify.poll() if "READY" in message]
    assert int(ready["MAINPID"]) == daemon.pid
    assert "0/256 sessions" in ready["STATUS"]
    with daemon.connect() as client:
        assert client.ask("echo at once") == "at once"


def test_status_has_live_counts(poold: Poold) -> None:
    """STATUS= follows the sessions, and its last word is the truth."""
    daemon = poold().start()
    with daemon.connect() as one, daemon.connect() as two:
        one.ask("pid")
        two.ask("pid")
        eventually(lambda: heard(daemon, "STATUS")[-1].startswith("2/256 sessions"))
    eventually(lambda: heard(daemon, "STATUS")[-1].startswith("0/256 sessions, 4 spares"))


def test_reloading(poold: Poold) -> None:
    """A reload says RELOADING=1 with the monotonic time, and READY=1 when it has ended, whether it was applied or refused."""
    daemon = poold().start()
    before = time.monotonic()
    for settings, result in (("", "applied"), ("[pool]\nmax_children = 0\n", "refused")):
        daemon.config.write_text(daemon.config.read_text() + settings)
        count = len(daemon.notify.poll())
        daemon.kill(signal.SIGHUP)
        daemon.metric("poold_reloads_total", 1, result=result)
        told = eventually(lambda count=count: [m for m in daemon.notify.poll()[count:] if "READY" in m] and daemon.notify.poll()[count:])
        told = [message for message in told if "READY" in message or "RELOADING" in message]
        assert list(told[0]) == ["RELOADING", "MONOTONIC_USEC"]
        assert before <= int(told[0]["MONOTONIC_USEC"]) / 1e6 <= time.monotonic()
        assert told[1] == {"READY": "1"}


def test_stopping_and_more_time(poold: Poold) -> None:
    """A drain says STOPPING=1, asks for more time as long as it lasts, and tells how many sessions are left."""
    daemon = poold(options={"timeouts.drain": 60}).start()
    with daemon.connect() as client:
        client.ask("pid")
        daemon.kill(signal.SIGTERM)
        eventually(lambda: heard(daemon, "STOPPING") == ["1"])
        eventually(lambda: len(heard(daemon, "EXTEND_TIMEOUT_USEC")) >= 2)
        assert int(heard(daemon, "EXTEND_TIMEOUT_USEC")[0]) > 5_000_000
        eventually(lambda: heard(daemon, "STATUS")[-1].startswith("draining, 1/256 sessions"))
        client.finish()
    assert daemon.wait() == 0


def test_watchdog(poold: Poold) -> None:
    """WATCHDOG=1 comes from the loop: regularly while it turns, never while the master is stopped."""
    daemon = poold().start(environ={"WATCHDOG_USEC": "200000"})
    eventually(lambda: len(heard(daemon, "WATCHDOG")) >= 3)
    os.kill(daemon.pid, signal.SIGSTOP)
    count = len(heard(daemon, "WATCHDOG"))
    # The exporter answers a scrape all the same, which takes it a while; that is the time that passes here.
    for _ in range(4):
        daemon.get("/healthz")
    assert len(heard(daemon, "WATCHDOG")) <= count + 1
    os.kill(daemon.pid, signal.SIGCONT)
    eventually(lambda: len(heard(daemon, "WATCHDOG")) > count + 2)
    assert daemon.get("/healthz") == 200


def test_watchdog_of_somebody_else(poold: Poold) -> None:
    """A watchdog that is meant for another process is left alone, and an idle poold then says nothing at all."""
    daemon = poold().start(environ={"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}, laws=False)
    daemon.metric("poold_children", 4, kind="worker", state="spare")
    with daemon.connect() as client:
        client.ask("pid")
    daemon.metric("poold_sessions_active", 0)
    assert heard(daemon, "WATCHDOG") == []


def test_stopped_for_a_while(poold: Poold) -> None:
    """A master that was stopped past a deadline does not punish anybody for it: the time it missed does not count."""
    daemon = poold(options={"timeouts.drain": 7}).start(laws=False)
    with daemon.connect() as client:
        client.ask("pid")
        daemon.kill(signal.SIGTERM)
        daemon.event("draining")
        os.kill(daemon.master, signal.SIGSTOP)
        end = time.monotonic() + 13
        eventually(lambda: time.monotonic() > end)
        os.kill(daemon.master, signal.SIGCONT)
        assert client.ask("echo still here") == "still here"
        assert not daemon.events("drain_overdue")
        client.finish()
    assert daemon.wait() == 0
    assert daemon.events("session_ended", cause="ok")

"""Children that die, hang, lie or are stopped, at each point of their lives: one client is concerned at most, and every count knows."""

import contextlib
import json
import os
import resource
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from poold.channel import Outcome, WorkerWord, pack_report
from tests.childkit import handed_over, spares_of
from tests.procfs import alive, children_of, freeze, frozen, gone, shows, state
from tests.support import Client, Poold
from tests.waiting import eventually, stays
from tests.wirekit import port_of

ONE_SPARE = {"pool.min_spare": 1, "pool.max_spare": 1}
FATAL = ("SEGV", "ABRT", "BUS", "ILL", "FPE", "SYS", "TRAP", "KILL", "TERM", "INT", "HUP", "QUIT", "ALRM", "USR1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where orders for handlers lie that have no client to take them from."""
    place = tmp_path / "orders"
    place.mkdir()
    return place


def restless(folder: Path, **options: Any) -> dict[str, Any]:
    """Return settings with which each worker imports the handler by itself, and listens to orders."""
    server = {"server.handler": "restless:serve", "server.environment": {"FOLDER": str(folder)}}
    return {**server, "pool.preload": False, **ONE_SPARE, **options}


def hooked(folder: Path, **options: Any) -> dict[str, Any]:
    """Return settings with which hooks run in mold and worker at each clone."""
    return {"server.handler": "hooked:serve", "server.environment": {"FOLDER": str(folder)}, **ONE_SPARE, **options}


def order(folder: Path, pid: int, words: str) -> None:
    """Give an order to a restless spare."""
    fifo = folder / f"{pid}.fifo"

    def opened() -> int | None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            # The other end is not there yet.
            return None

    fd = eventually(lambda: (fd := opened()) is not None and (fd,), f"{fifo} is read")[0]
    os.write(fd, words.encode())
    os.close(fd)


def at(event: dict[str, Any]) -> float:
    """Return the time of an event, in seconds."""
    return datetime.fromisoformat(event["time"]).timestamp()


# A session's worker ends.


def test_fatal_signals(poold: Poold) -> None:
    """A worker that a signal ends costs its own client the session, and the log says who, which signal and when."""
    daemon = poold(options={"pool.min_spare": 2}).start()
    with daemon.connect() as bystander:
        for name in FATAL:
            number = int(getattr(signal, f"SIG{name}"))
            with daemon.connect() as victim:
                pid, port = int(victim.ask("pid")), port_of(victim)
                victim.send(f"signal {number}\n".encode())
                assert victim.rest() == b""
            failed = daemon.event("child_failed", pid=pid)
            assert (failed["reason"], failed["status"]) == ("signal", -number)
            assert failed["peer"] == f"127.0.0.1:{port}"
            assert failed["seconds"] >= 0
            assert daemon.event("session_ended", pid=pid)["cause"] == "signal"
            assert bystander.ask(f"echo after {name}") == f"after {name}"
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    metrics = daemon.metrics()
    assert metrics.total("poold_sessions_ended_total", cause="signal") == len(FATAL)
    assert metrics.total("poold_children_failed_total", reason="signal") == len(FATAL)
    assert metrics.total("poold_children_failed_total") == len(FATAL)


def test_null_pointer(poold: Poold) -> None:
    """A handler that reads through a null pointer takes nobody with it."""
    daemon = poold().start()
    with daemon.connect() as bystander, daemon.connect() as victim:
        victim.send(b"crash\n")
        assert victim.rest() == b""
        daemon.metric("poold_children_failed_total", 1, reason="signal")
        assert daemon.event("session_ended", cause="signal")["status"] == -signal.SIGSEGV
        assert bystander.ask("echo here") == "here"


def test_worker_killed_from_outside(poold: Poold) -> None:
    """A serving worker that somebody kills ends its session as `signal`, and counts as failed by signal."""
    daemon = poold().start()
    with daemon.connect() as client, daemon.connect() as bystander:
        pid = int(client.ask("pid"))
        os.kill(pid, signal.SIGKILL)
        assert client.rest() == b""
        daemon.metric("poold_sessions_ended_total", 1, cause="signal")
        daemon.metric("poold_children_failed_total", 1, reason="signal")
        assert daemon.event("child_failed", pid=pid)["status"] == -signal.SIGKILL
        assert bystander.ask("echo here") == "here"


def test_every_exit_status(poold: Poold) -> None:
    """Exit status 0 ends a session as `ok`, each of the 255 others as `exit`: none of them is poold's own."""
    daemon = poold(options={"pool.min_spare": 8, "log.level": "warning"}).start()
    for first in range(0, 256, 32):
        clients = [daemon.connect() for _ in range(32)]
        for code, client in enumerate(clients, first):
            client.send(f"exit {code}\n".encode())
        for client in clients:
            assert client.rest() == b""
            client.close()
    daemon.metric("poold_sessions_ended_total", 256)
    metrics = daemon.metrics()
    assert metrics.total("poold_sessions_ended_total", cause="ok") == 1
    assert metrics.total("poold_sessions_ended_total", cause="exit") == 255
    assert metrics.total("poold_children_failed_total", reason="exit") == 255
    assert metrics.total("poold_children_failed_total") == 255


def test_exit_as_the_interpreter_does(poold: Poold) -> None:
    """sys.exit() in a handler means what it means in a program: nothing or 0 is well, a number is a status, a text is 1 and printed.

    What does not fit into a status is not well either, although the kernel would cut it to 0.
    """
    daemon = poold().start()
    for words, status, cause in (("sysexit 0", 0, "ok"), ("sysexit 3", 3, "exit"), ("sysexit 256", 1, "exit"), ("raise exit", 1, "exit")):
        mark = daemon.mark()
        with daemon.connect() as client:
            client.send(words.encode() + b"\n")
            assert client.rest() == b""
        ended = daemon.event("session_ended", after=mark)
        assert (words, ended["status"], ended["cause"]) == (words, status, cause)
    assert daemon.event("handler_output", line="a text")
    assert daemon.events("handler_failed") == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("raise error", "ValueError"),
        ("raise keyboard", "KeyboardInterrupt"),
        ("raise generator", "GeneratorExit"),
        ("raise memory", "MemoryError"),
        ("recurse", "RecursionError"),
    ],
)
def test_error_that_leaves_the_handler(poold: Poold, words: str, error: str) -> None:
    """Whatever leaves a handler ends that session as `exit` with status 1, and is logged once, on one line, with its traceback."""
    daemon = poold(options={"server.handler": "faults:serve"}).start()
    with daemon.connect() as client:
        session = json.loads(client.ask("facts"))["id"]
        client.send(words.encode() + b"\n")
        assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="exit")
    daemon.metric("poold_children_failed_total", 1, reason="exit")
    (failed,) = daemon.events("handler_failed")
    assert (failed["error"], failed["session"]) == (error, session)
    assert "Traceback" in failed["traceback"]
    assert failed["traceback"].isprintable()
    assert daemon.event("session_ended")["status"] == 1
    daemon.metric("poold_children_failed_total", 1)


@pytest.mark.parametrize("words", ["raise broken", "raise reset"])
def test_client_that_has_gone_is_no_failure(poold: Poold, words: str) -> None:
    """A broken pipe or a reset that leaves the handler ends the session as `client_gone`, and nobody has failed."""
    daemon = poold().start()
    with daemon.connect() as client:
        client.send(words.encode() + b"\n")
        assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="client_gone")
    assert daemon.metrics().total("poold_children_failed_total") == 0
    assert daemon.events("handler_failed") == []


def test_long_and_hostile_traceback(poold: Poold) -> None:
    """An error whose text is endless and full of control characters is logged as one escaped line, of at most four kilobytes."""
    daemon = poold(options={"server.handler": "faults:serve"}).start()
    with daemon.connect() as client:
        client.send(b"raise_long\n")
        assert client.rest() == b""
    failed = daemon.event("handler_failed", error="ValueError")
    assert len(failed["traceback"]) > 1000
    (line,) = (line for line in daemon.log.read_bytes().split(b"\n") if b'"handler_failed"' in line)
    assert line.decode().isprintable()
    assert len(line) < 4096


# A worker is asked to end.


@pytest.mark.parametrize(("number", "cause"), [(signal.SIGTERM, "drained"), (signal.SIGQUIT, "killed")])
def test_one_term_then_one_kill(poold: Poold, number: int, cause: str) -> None:
    """A session that does not leave at TERM gets exactly one TERM, then one KILL, and its end is not counted as a failure."""
    daemon = poold(options={"server.handler": "faults:serve", "timeouts.kill": 0.4}).start()
    with daemon.connect() as stubborn, daemon.connect() as easy:
        assert stubborn.ask("count_term") == "ok"
        assert easy.ask("echo here") == "here"
        pid = int(stubborn.ask("pid"))
        daemon.kill(number)
        assert stubborn.rest() == b"term\n"
        assert easy.rest() == b""
        assert daemon.wait() == 0
    ended = {event["pid"]: (event["cause"], event["status"]) for event in daemon.events("session_ended")}
    assert sorted(ended.values()) == [(cause, -signal.SIGTERM), (cause, -signal.SIGKILL)]
    assert ended[pid] == (cause, -signal.SIGKILL)
    assert [event["pid"] for event in daemon.events("child_killed")] == [pid]
    assert daemon.events("child_failed") == []


def test_second_term_does_not_wait(poold: Poold) -> None:
    """A second TERM kills what the first one left."""
    daemon = poold(options={"server.handler": "faults:serve", "timeouts.kill": 60}).start()
    with daemon.connect() as client:
        assert client.ask("count_term") == "ok"
        daemon.kill(signal.SIGTERM)
        assert client.line() == "term"
        daemon.kill(signal.SIGTERM)
        assert client.rest() == b""
    assert daemon.wait() == 0
    assert daemon.events("child_failed") == []


def test_term_to_the_last_moment(poold: Poold) -> None:
    """However often TERM comes, until the very end, the exit status is that of a requested stop."""
    daemon = poold().start(laws=False)
    assert daemon.process is not None
    master = daemon.master

    def term() -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(master, signal.SIGTERM)
        return daemon.process is not None and daemon.process.poll() is not None

    while not term():
        pass
    assert daemon.wait() == 0


def test_stopped_children_do_not_hold_up_a_stop(poold: Poold) -> None:
    """Spares, session and mold that are stopped by a signal are killed in the end, and the master ends with 0."""
    daemon = poold(options={"pool.min_spare": 2, "timeouts.kill": 0.2}).start()
    spares_of(daemon, 2)
    with daemon.connect() as client:
        client.ask("pid")
        spares_of(daemon, 2)
        for pid in children_of(daemon.master):
            freeze(pid)
        assert daemon.stop() == 0
        assert client.rest() == b""
    assert daemon.event("session_ended")["cause"] == "drained"


# A birth fails.


def test_births_slow_down(poold: Poold, folder: Path) -> None:
    """While workers die before they are ready, births wait twice as long each time from 50 ms, with one line; a success resets it."""
    daemon = poold(options=restless(folder)).start()
    for _ in range(2):
        mark = daemon.mark()
        (spare,) = spares_of(daemon, 1)
        (folder / "mood").write_text("exit 7")
        os.kill(spare, signal.SIGKILL)
        eventually(lambda mark=mark: len(daemon.events("child_failed", after=mark, reason="stillborn")) >= 4, "four stillbirths")
        (folder / "mood").unlink()
        spares_of(daemon, 1)
        (warning,) = daemon.events("spawn_failed", after=mark)
        assert warning["retry_seconds"] == 0.05
        deaths = daemon.events("child_failed", after=mark, reason="stillborn")
        assert {death["status"] for death in deaths} == {7}
        births = daemon.events("child_spawned", after=mark, kind="worker")
        assert len(births) == len(deaths) + 1
        gaps = [at(birth) - at(death) for death, birth in zip(deaths, births[1:], strict=True)]
        # What is logged is cut to milliseconds.
        assert [gap >= 0.05 * 2**number - 0.002 for number, gap in enumerate(gaps)] == [True] * len(gaps), gaps
    metrics = daemon.metrics()
    assert metrics.total("poold_children_failed_total", reason="stillborn") == len(daemon.events("child_failed", reason="stillborn"))
    assert metrics.total("poold_children_failed_total", reason="signal") == 2


@pytest.mark.parametrize(("mood", "status"), [("exit 0", 0), ("exit 3", 3), ("sysexit 0", None), ("sysexit 3", None)])
def test_stillborn_by_its_import(poold: Poold, folder: Path, mood: str, status: int | None) -> None:
    """A worker that ends during its own import is stillborn whatever its exit status, and is replaced when it can be."""
    daemon = poold(options=restless(folder)).start()
    (spare,) = spares_of(daemon, 1)
    (folder / "mood").write_text(mood)
    with daemon.connect() as client:
        assert int(client.ask("pid")) == spare
        failed = daemon.event("child_failed", reason="stillborn")
        assert status in (None, failed["status"])
        (folder / "mood").unlink()
    spares_of(daemon, 1)
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_import_that_fails_later(poold: Poold, folder: Path) -> None:
    """A handler whose import fails in a worker is its author's fault, and is logged as that, with its traceback."""
    daemon = poold(options=restless(folder)).start()
    (spare,) = spares_of(daemon, 1)
    (folder / "mood").write_text("raise")
    os.kill(spare, signal.SIGKILL)
    daemon.event("child_failed", reason="stillborn")
    (folder / "mood").unlink()
    spares_of(daemon, 1)
    failed = daemon.event("handler_import_failed")
    assert failed["reason"] == "RuntimeError: not in the mood"
    assert "Traceback" in failed["traceback"]
    assert daemon.events("worker_failed") == []


def test_waiting_client_survives_stillbirths(poold: Poold, folder: Path) -> None:
    """A client whose workers are stillborn waits, and is served by the first one that is not."""
    daemon = poold(options=restless(folder, **{"pool.min_spare": 0, "pool.max_spare": 0})).start()
    (folder / "mood").write_text("exit 1")
    with daemon.connect() as client:
        client.send(b"echo at last\n")
        eventually(lambda: len(daemon.events("child_failed", reason="stillborn")) >= 2, "two stillbirths")
        (folder / "mood").unlink()
        assert client.line() == "at last"
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    assert daemon.metrics().total("poold_connections_accepted_total") == 1


def test_client_of_stillbirths_gets_an_end(poold: Poold, folder: Path) -> None:
    """A client for whom no worker is born within timeouts.startup gets an end, and its session is `timeout_startup`."""
    daemon = poold(options=restless(folder, **{"pool.min_spare": 0, "pool.max_spare": 0, "timeouts.startup": 0.5})).start()
    (folder / "mood").write_text("exit 1")
    with daemon.connect() as client:
        assert client.rest() == b""
        daemon.metric("poold_sessions_ended_total", 1, cause="timeout_startup")
    (folder / "mood").unlink()
    with daemon.connect() as client:
        assert client.ask("echo again") == "again"


def test_death_before_its_first_word(poold: Poold, folder: Path) -> None:
    """A worker that dies before it has said a word was spawned, reaped and stillborn all the same, and no row is left of it."""
    daemon = poold(options=hooked(folder)).start()
    (spare,) = spares_of(daemon, 1)
    (folder / "child").write_text("exit")
    os.kill(spare, signal.SIGKILL)
    eventually(lambda: len(daemon.events("child_failed", reason="stillborn", status=7)) >= 3, "three stillbirths")
    (folder / "child").unlink()
    spares_of(daemon, 1)
    metrics = daemon.metrics()
    stillborn = metrics.total("poold_children_failed_total", reason="stillborn")
    assert stillborn >= 3
    assert metrics.total("poold_children_reaped_total", kind="worker") == stillborn + 1
    assert metrics.total("poold_children_spawned_total", kind="worker") == stillborn + 2
    assert metrics.total("poold_unknown_children_reaped_total") == 0
    assert len(daemon.children("worker")) == 1


def test_hang_during_its_import(poold: Poold, folder: Path) -> None:
    """A worker that is not ready within the deadline is killed, counted as stillborn and replaced."""
    # A worker's import has as much time as a mold's, which must be able to start.
    daemon = poold(options=restless(folder, **{"timeouts.import": 1.5, "timeouts.startup": 0.1})).start()
    (spare,) = spares_of(daemon, 1)
    (folder / "mood").write_text("hang")
    os.kill(spare, signal.SIGKILL)
    hung = daemon.event("worker_not_ready")["pid"]
    failed = daemon.event("child_failed", pid=hung)
    assert (failed["reason"], failed["status"]) == ("stillborn", -signal.SIGKILL)
    assert failed["seconds"] >= 1.6
    spares_of(daemon, 1)
    assert gone(hung)
    daemon.metric("poold_children_failed_total", 1, reason="stillborn")


def test_hang_before_its_first_word(poold: Poold, folder: Path) -> None:
    """A worker that a hook of some library hangs right after the clone is found, killed and counted as stillborn too."""
    daemon = poold(options=hooked(folder, **{"timeouts.startup": 1.0})).start()
    (spare,) = spares_of(daemon, 1)
    mold = daemon.event("mold_started")["pid"]
    (folder / "child").write_text("hang")
    os.kill(spare, signal.SIGKILL)

    def newborn() -> set[int]:
        return {pid for pid in children_of(daemon.master) if pid != mold and shows(pid, "poold: mold")}

    eventually(lambda: not (folder / "child").exists(), "a worker that hangs")
    hung = newborn()
    try:
        eventually(lambda: not hung & newborn(), "the end of the worker that hangs", seconds=5)
    finally:
        for pid in hung & newborn():
            os.kill(pid, signal.SIGKILL)
    spares_of(daemon, 1)
    metrics = daemon.metrics()
    assert metrics.total("poold_children_failed_total", reason="stillborn") == len(hung) == 1
    assert metrics.total("poold_unknown_children_reaped_total") == 0


# A spare has an accident.


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_spare_killed_while_idle(poold: Poold, number: int) -> None:
    """A spare that a signal ends while it waits counts as failed by signal, and is replaced."""
    daemon = poold(options=ONE_SPARE).start()
    (spare,) = spares_of(daemon, 1)
    os.kill(spare, number)
    failed = daemon.event("child_failed", pid=spare)
    assert (failed["reason"], failed["status"]) == ("signal", -number)
    assert "session" not in failed
    (successor,) = spares_of(daemon, 1)
    with daemon.connect() as client:
        assert int(client.ask("pid")) == successor
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


@pytest.mark.parametrize(("words", "status"), [("exit 0", 0), ("exit 9", 9), ("shut", None)])
def test_spare_that_leaves(poold: Poold, folder: Path, words: str, status: int | None) -> None:
    """A spare that exits or closes its channel while it waits is replaced, and the next client does not notice."""
    daemon = poold(options=restless(folder)).start()
    (spare,) = spares_of(daemon, 1)
    order(folder, spare, words)
    eventually(lambda: gone(spare), "its end")
    (successor,) = spares_of(daemon, 1)
    with daemon.connect() as client:
        assert int(client.ask("pid")) == successor
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    # One that only closed its channel may be killed before it leaves by itself.
    if status is not None:
        assert daemon.event("child_reaped", pid=spare)["status"] == status
        metrics = daemon.metrics()
        assert metrics.total("poold_children_failed_total", reason="exit") == bool(status)
        assert metrics.total("poold_children_failed_total") == bool(status)


def test_spare_killed_while_the_master_sees_nothing(poold: Poold) -> None:
    """A client that comes at the same moment as the death of the only spare is served by another worker."""
    daemon = poold(options=ONE_SPARE).start()
    (spare,) = spares_of(daemon, 1)
    with frozen(daemon.master):
        os.kill(spare, signal.SIGKILL)
        eventually(lambda: state(spare) == "Z", "its death")
        client = daemon.connect()
        client.send(b"pid\n")
    with client:
        assert int(client.line()) != spare
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    daemon.metric("poold_children_failed_total", 1, reason="signal")


# Between the hand-over and the acknowledgement.


def test_spare_killed_before_it_acknowledges(poold: Poold) -> None:
    """A client whose worker dies between the hand-over and the acknowledgement is served by another, and was accepted once."""
    daemon = poold(options=ONE_SPARE).start()
    (spare,) = spares_of(daemon, 1)
    with frozen(spare), daemon.connect() as client:
        client.send(b"pid\n")
        handed_over(daemon)
        assert daemon.metrics()["poold_children_active"] == 0
        os.kill(spare, signal.SIGKILL)
        assert int(client.line()) != spare
    daemon.metric("poold_sessions_ended_total", 1)
    metrics = daemon.metrics()
    assert metrics.total("poold_sessions_ended_total", cause="ok") == 1
    assert metrics.total("poold_connections_accepted_total") == 1
    assert metrics.total("poold_children_failed_total", reason="signal") == 1
    assert len(daemon.events("session_started")) == 1
    assert metrics["poold_handover_seconds_count"] == 1


def test_two_deaths_lose_a_session(poold: Poold) -> None:
    """A session that two workers died over before they acknowledged it is given up as `lost`; the next client is served."""
    daemon = poold(options=ONE_SPARE).start()
    (first,) = spares_of(daemon, 1)
    with frozen(first), daemon.connect() as client:
        handed_over(daemon)
        (second,) = spares_of(daemon, 1, but=[first])
        with frozen(second):
            os.kill(first, signal.SIGKILL)
            eventually(lambda: gone(first), "the end of the first")
            handed_over(daemon)
            os.kill(second, signal.SIGKILL)
            assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="lost")
    daemon.metric("poold_children_failed_total", 2, reason="signal")
    daemon.metric("poold_sessions_active", 0)
    with daemon.connect() as client:
        assert client.ask("echo next") == "next"


def test_session_that_was_served_is_not_served_twice(poold: Poold) -> None:
    """A worker that acknowledged and died before the master could read it ends its session: nobody serves it again."""
    daemon = poold(options=ONE_SPARE).start()
    (spare,) = spares_of(daemon, 1)
    freeze(spare)
    with daemon.connect() as client:
        handed_over(daemon)
        with frozen(daemon.master):
            os.kill(spare, signal.SIGCONT)
            assert int(client.ask("pid")) == spare
            os.kill(spare, signal.SIGKILL)
            eventually(lambda: state(spare) == "Z", "its death")
        assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="signal")
    metrics = daemon.metrics()
    assert metrics.total("poold_sessions_ended_total") == 1
    assert metrics["poold_handover_seconds_count"] == 1


def test_master_that_was_stopped_blames_nobody(poold: Poold) -> None:
    """An acknowledgement that lay unread while the master was stopped is in time, however long that was."""
    daemon = poold(options=ONE_SPARE).start()
    (spare,) = spares_of(daemon, 1)
    freeze(spare)
    with daemon.connect() as client:
        handed_over(daemon)
        with frozen(daemon.master):
            os.kill(spare, signal.SIGCONT)
            assert int(client.ask("pid")) == spare
            stays(lambda: alive(spare), "the session goes on", seconds=2.2)
        assert int(client.ask("pid")) == spare
        daemon.metric("poold_children_active", 1)
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    assert daemon.events("worker_silent") == []
    assert daemon.metrics().total("poold_children_failed_total") == 0


def test_spare_without_room_for_a_descriptor(poold: Poold) -> None:
    """A spare at its limit of open files says that the connection did not reach it, and another worker serves the client."""
    daemon = poold(options=ONE_SPARE).start()
    (spare,) = spares_of(daemon, 1)
    resource.prlimit(spare, resource.RLIMIT_NOFILE, (3, 3))
    with daemon.connect() as client:
        assert int(client.ask("pid")) != spare
        assert daemon.event("handover_refused", pid=spare)["errno"] == "EMFILE"
        eventually(lambda: gone(spare), "the end of the useless spare")
        daemon.metric("poold_children_failed_total", 1, reason="exit")
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    assert daemon.metrics().total("poold_children_failed_total") == 1


def test_refusal_is_no_death(poold: Poold) -> None:
    """A session that one worker could not receive and another died over has lost one worker, not two: a third one serves it."""
    daemon = poold(options=ONE_SPARE).start()
    (first,) = spares_of(daemon, 1)
    resource.prlimit(first, resource.RLIMIT_NOFILE, (3, 3))
    freeze(first)
    with daemon.connect() as client:
        client.send(b"pid\n")
        handed_over(daemon)
        (second,) = spares_of(daemon, 1, but=[first])
        with frozen(second):
            os.kill(first, signal.SIGCONT)
            daemon.event("handover_refused", pid=first)
            eventually(lambda: gone(first), "the end of the first")
            handed_over(daemon)
            os.kill(second, signal.SIGKILL)
            assert int(client.line() or 0) not in (0, first, second)
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_refusals_without_end_are_no_storm_of_births(poold: Poold, folder: Path) -> None:
    """When no worker can receive a connection, workers are not made and killed as fast as the machine can."""
    daemon = poold(options=hooked(folder, **{"timeouts.startup": 1.0})).start()
    (spare,) = spares_of(daemon, 1)
    (folder / "child").write_text("full")
    resource.prlimit(spare, resource.RLIMIT_NOFILE, (3, 3))
    before = daemon.metrics().total("poold_children_spawned_total", kind="worker")
    with daemon.connect() as client:
        assert client.rest() == b""
    spawned = daemon.metrics().total("poold_children_spawned_total", kind="worker") - before
    (folder / "child").unlink()
    # As fast as the machine can it would be hundreds.
    assert spawned <= 40


def test_silent_spare(poold: Poold) -> None:
    """A worker that does not acknowledge within two seconds is killed as `timeout`, and its session goes to another one."""
    daemon = poold(options=ONE_SPARE).start()
    (spare,) = spares_of(daemon, 1)
    with frozen(spare), daemon.connect() as client:
        started = time.monotonic()
        served_by = int(client.ask("pid"))
        assert time.monotonic() - started >= 1.9
        assert served_by != spare
        daemon.metric("poold_children_failed_total", 1, reason="timeout")
        assert daemon.event("child_failed", pid=spare)["reason"] == "timeout"
        assert daemon.event("worker_silent")["pid"] == spare
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    assert daemon.metrics().total("poold_children_failed_total") == 1


def test_silence_until_the_startup_deadline(poold: Poold) -> None:
    """A client that has waited for timeouts.startup gets an end, also when its session is with a silent worker."""
    daemon = poold(options={**ONE_SPARE, "timeouts.startup": 0.7}).start()
    (spare,) = spares_of(daemon, 1)
    with frozen(spare), daemon.connect() as client:
        handed_over(daemon)
        assert client.rest() == b""
        daemon.metric("poold_sessions_ended_total", 1, cause="timeout_startup")
        eventually(lambda: gone(spare), "the end of the silent spare")
        daemon.metric("poold_children_failed_total", 1, reason="timeout")


# A worker talks nonsense.

FOREVER = {"pool.connections_per_child": 0, "server.handler": "faults:serve"}


def tell(client: Client, message: bytes, times: int = 1) -> None:
    """Have the client's worker say something on its channel."""
    client.send(f"tell {message.hex()} {times}\n".encode())


@pytest.mark.parametrize(
    "message",
    [b"\0", b"abc", bytes(range(64)), bytes([200]) + bytes(15), bytes(16), bytes([2]) + bytes(64), b"\xff" * 65536, b""],
    ids=["byte", "short", "noise", "word 200", "word 0", "long", "64 KiB", "empty"],
)
def test_malformed_word(poold: Poold, message: bytes) -> None:
    """A worker that says what is no word at all is ended, its session is `lost`, and nobody else notices."""
    daemon = poold(options=FOREVER).start()
    with daemon.connect() as liar, daemon.connect() as bystander:
        pid = int(liar.ask("pid"))
        assert bystander.ask("echo before") == "before"
        tell(liar, message)
        eventually(lambda: daemon.events("protocol_error", pid=pid), "it is heard", seconds=5)
        liar.rest()
        daemon.metric("poold_sessions_ended_total", 1, cause="lost")
        eventually(lambda: gone(pid), "its end")
        assert bystander.ask("echo after") == "after"
        daemon.metric("poold_children_failed_total", 1)
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    with daemon.connect() as client:
        assert client.ask("echo next") == "next"


@pytest.mark.parametrize(
    ("word", "other", "number"),
    [
        (WorkerWord.BORN, 0, 0),
        (WorkerWord.READY, 0, 0),
        (WorkerWord.ACK, 0, 0),
        (WorkerWord.ACK, 1000, 0),
        (WorkerWord.NACK, 0, 24),
        (WorkerWord.NACK, 1000, 24),
        (WorkerWord.EXEC, 0, 0),
        (WorkerWord.NOEXEC, 0, 2),
        (WorkerWord.DONE, 0, 99),
        (WorkerWord.DONE, 1000, Outcome.OK),
    ],
)
def test_word_out_of_place(poold: Poold, word: WorkerWord, other: int, number: int) -> None:
    """A worker that says a word that cannot be true while it serves is ended, its session is `lost`, and nobody else notices."""
    daemon = poold(options=FOREVER).start()
    with daemon.connect() as liar, daemon.connect() as bystander:
        facts = json.loads(liar.ask("facts"))
        assert bystander.ask("echo before") == "before"
        tell(liar, pack_report(word, facts["id"] + other, number))
        eventually(lambda: daemon.metrics().total("poold_sessions_ended_total") == 1, "its session ends", seconds=5)
        daemon.metric("poold_sessions_ended_total", 1, cause="lost")
        eventually(lambda: gone(facts["pid"]), "its end")
        assert bystander.ask("echo after") == "after"
        daemon.metric("poold_children_failed_total", 1)
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_flood_of_words(poold: Poold) -> None:
    """A worker that never stops talking is ended at once, and the others are served meanwhile."""
    daemon = poold(options=FOREVER).start()
    with daemon.connect() as liar, daemon.connect() as bystander:
        pid = int(liar.ask("pid"))
        assert bystander.ask("echo before") == "before"
        tell(liar, pack_report(WorkerWord.READY), 1_000_000)
        liar.rest()
        assert bystander.ask("echo after") == "after"
        eventually(lambda: gone(pid), "its end")
    daemon.metric("poold_sessions_ended_total", 1, cause="lost")
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_descriptors_from_a_worker_are_not_taken(poold: Poold) -> None:
    """Descriptors that a worker sends along never arrive in the master."""
    daemon = poold(options={**FOREVER, **ONE_SPARE}).start()
    spares_of(daemon, 1)
    before = len(os.listdir(f"/proc/{daemon.master}/fd"))
    with daemon.connect() as liar:
        liar.send(f"tell_rights {pack_report(WorkerWord.DONE, 0, 99).hex()}\n".encode())
        liar.rest()
    daemon.metric("poold_sessions_ended_total", 1, cause="lost")
    spares_of(daemon, 1)
    eventually(lambda: len(os.listdir(f"/proc/{daemon.master}/fd")) == before, "the baseline of descriptors")


def test_worker_that_says_it_is_done(poold: Poold) -> None:
    """A worker that says DONE too early decides about its own session only: the next client is served, by another worker."""
    daemon = poold(options={**FOREVER, **ONE_SPARE}).start()
    with daemon.connect() as liar:
        facts = json.loads(liar.ask("facts"))
        spares_of(daemon, 1)
        tell(liar, pack_report(WorkerWord.DONE, facts["id"], Outcome.OK))
        assert liar.line() == "told"
        daemon.metric("poold_sessions_ended_total", 1, cause="ok")
        with daemon.connect() as client:
            assert int(client.ask("pid")) != facts["pid"]
        daemon.metric("poold_sessions_ended_total", 2, cause="ok")
        liar.send(b"echo still there\n")
        liar.rest()
    eventually(lambda: gone(facts["pid"]), "its end")
    assert daemon.metrics().total("poold_sessions_ended_total") == 2


def test_handler_that_closes_every_descriptor(poold: Poold) -> None:
    """A handler that closes what is not its own, the channel too, ends its own session and nothing else."""
    daemon = poold(options={**FOREVER, **ONE_SPARE}).start()
    with daemon.connect() as client:
        pid = int(client.ask("pid"))
        client.send(b"close_everything\n")
        client.rest()
    eventually(lambda: gone(pid), "its end")
    daemon.metric("poold_sessions_ended_total", 1)
    with daemon.connect() as client:
        assert client.ask("echo next") == "next"


@pytest.mark.parametrize(
    "message",
    [b"abc", pack_report(WorkerWord.ACK, 1), pack_report(WorkerWord.DONE, 1), pack_report(WorkerWord.READY)],
    ids=["short", "ACK", "DONE", "READY"],
)
def test_spare_that_talks_nonsense(poold: Poold, folder: Path, message: bytes) -> None:
    """A spare that says what cannot be true is ended and replaced before a client is given to it."""
    daemon = poold(options=restless(folder)).start()
    (spare,) = spares_of(daemon, 1)
    order(folder, spare, f"tell {message.hex()}")
    assert daemon.event("protocol_error", pid=spare)
    eventually(lambda: gone(spare), "its end")
    (successor,) = spares_of(daemon, 1)
    with daemon.connect() as client:
        assert int(client.ask("pid")) == successor
    daemon.metric("poold_children_failed_total", 1, reason="exit")
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_mold_that_talks_nonsense(poold: Poold, folder: Path) -> None:
    """A mold that says what is no word is replaced; a session goes on, and new clients are served."""
    daemon = poold(options=hooked(folder)).start()
    with daemon.connect() as bystander:
        assert bystander.ask("echo before") == "before"
        spares_of(daemon, 1)
        (folder / "parent").write_text("tell")
        with daemon.connect() as client:
            assert client.ask("echo next") == "next"
            mold = daemon.event("mold_started")["pid"]
            assert daemon.event("protocol_error", pid=mold)
            (folder / "parent").unlink()
            spares_of(daemon, 1)
            assert gone(mold)
        assert bystander.ask("echo after") == "after"
    daemon.metric("poold_sessions_ended_total", 2, cause="ok")

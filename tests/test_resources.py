"""Shortages: processes, descriptors, disk, and readers. None ends the master, none loses a client, each is counted."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from tests.childkit import exporter_of, mold_of, spares_of
from tests.faultkit import Pipe, ended, fill, mischievous, out_of_files, pids_limit, small_disk, terminated, traced
from tests.needs import needs_root, needs_strace
from tests.procfs import alive, children_of, has_gone, held, open_files, open_flags
from tests.support import Daemon, Poold
from tests.waiting import eventually

COLD = {"pool.min_spare": 0, "pool.max_spare": 0}
REFUSING = {"pool.when_full": "refuse", "pool.refuse_message": "busy\n"}


def all_is_well(daemon: Daemon) -> None:
    """A client is served, and the master has met no error of its own."""
    with daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
    assert daemon.metrics()["poold_loop_errors_total"] == 0


# ---- Processes ---------------------------------------------------------------------------------------------------------------


@needs_root
def test_clone_that_the_kernel_refuses(poold: Poold) -> None:
    """At a limit of processes a new client waits and others notice nothing; it is served as soon as the limit allows."""
    daemon = poold(options=COLD).start()
    with daemon.connect() as one, pids_limit(mold_of(daemon), 1) as limit, daemon.connect() as two:
        assert one.ask("echo hello") == "hello"
        two.send(b"echo at last\n")
        eventually(lambda: daemon.metrics().total("poold_fork_failures_total", errno="EAGAIN") >= 3, "failures")
        assert one.ask("echo undisturbed") == "undisturbed"
        assert daemon.metrics()["poold_sessions_active"] == 2
        limit("max")
        assert two.line() == "at last"
        [line] = daemon.events("spawn_failed")
        assert line["errno"] == "EAGAIN"
        assert "pids.max" in line["hint"]
    daemon.metric("poold_sessions_ended_total", 2, cause="ok")
    assert daemon.metrics().total("poold_children_failed_total") == 0


@needs_root
def test_clone_beyond_the_limit_of_the_user(poold: Poold) -> None:
    """Where the user that workers run as has too many processes already, clients wait for their time and the master goes on."""
    daemon = poold()
    options = {"server.user": "nobody", "server.handler": "crowded:serve", "server.path": [str(daemon.folder)], "metrics.listen": ""}
    daemon.write(options={**COLD, **options, "timeouts.startup": 0.3})
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\nfrom poold.handlers.echo import serve\n"
    (daemon.folder / "crowded.py").write_text(limited)
    daemon.let_others_in()
    daemon.start(laws=False)
    for _ in range(2):
        with daemon.connect() as client:
            assert client.rest() == b""
    daemon.event("session_ended", session=2, cause="timeout_startup")
    failed = daemon.event("spawn_failed")
    assert failed["errno"] == "EAGAIN"
    assert "ulimit -u" in failed["hint"]


@needs_root
def test_spares_serve_while_clones_fail(poold: Poold) -> None:
    """Spares that exist are handed connections although no new worker can be made."""
    daemon = poold(options={"pool.min_spare": 2, "pool.max_spare": 2}).start()
    spares_of(daemon, 2)
    with pids_limit(mold_of(daemon), 1), daemon.connect() as one, daemon.connect() as two:
        assert one.ask("echo one") == "one"
        assert two.ask("echo two") == "two"
        eventually(lambda: daemon.metrics().total("poold_fork_failures_total", errno="EAGAIN") > 0, "a failure")
    spares_of(daemon, 2)


@needs_strace
def test_clones_are_retried_with_doubling_delays(poold: Poold) -> None:
    """After a failed clone the next try comes 50 ms later, then twice as late each time, whatever else wakes the master."""
    daemon = poold(options=COLD).start()
    with traced(daemon.folder, mold_of(daemon), "inject=clone:error=EAGAIN:when=1..4") as tracer, daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
        tries = eventually(lambda: times if len(times := tracer.times("clone(")) == 5 else [], "five tries")
    assert all(later - earlier >= delay for (earlier, later), delay in zip(pairwise(tries), (0.05, 0.1, 0.2, 0.4), strict=True))
    assert daemon.metrics().total("poold_fork_failures_total", errno="EAGAIN") == 4
    # A success ends it: the next failure waits for 50 ms again.
    with traced(daemon.folder, mold_of(daemon), "inject=clone:error=ENOMEM:when=1"), daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
    assert [line["retry_seconds"] for line in daemon.events("spawn_failed")] == [0.05, 0.05]


@needs_strace
def test_mold_that_has_too_much_to_read(poold: Poold) -> None:
    """An order that the mold's channel has no room for is placed again a little later, and is no clone that failed."""
    daemon = poold(options=COLD).start()
    with traced(daemon.folder, daemon.master, "inject=sendmsg:error=EAGAIN:when=1..3"), daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
    [line] = daemon.events("spawn_failed")
    assert line["errno"] == "EAGAIN"
    assert "hint" not in line
    assert daemon.metrics().total("poold_fork_failures_total") == 0


@needs_strace
def test_newcomers_are_refused_while_clones_fail(poold: Poold) -> None:
    """With when_full = refuse a client that comes while clones fail gets the message; one that came before still waits."""
    daemon = poold(options={**COLD, **REFUSING, "pool.max_children": 1}).start()
    with ExitStack() as stack:
        with traced(daemon.folder, mold_of(daemon), "inject=clone:error=EAGAIN"):
            waiting = stack.enter_context(daemon.connect())
            eventually(lambda: daemon.metrics().total("poold_fork_failures_total", errno="EAGAIN") >= 3, "failures")
            for _ in range(5):
                with daemon.connect() as refused:
                    assert refused.rest() == b"busy\n"
        assert waiting.ask("echo at last") == "at last"
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    metrics = daemon.metrics()
    assert metrics.total("poold_connections_refused_total") == 5
    # The one worker that may be is for whoever waits, whether it can be born or not.
    assert metrics.total("poold_connections_refused_total", reason="full") == 5


@needs_strace
def test_client_that_waits_too_long_for_a_worker(poold: Poold) -> None:
    """A session that gets no worker within the startup time ends for that reason, and leaves nothing behind."""
    daemon = poold(options={**COLD, "timeouts.startup": 0.3}).start()
    before = held(daemon.pid)
    with traced(daemon.folder, mold_of(daemon), "inject=clone:error=EAGAIN"), daemon.connect() as client:
        assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="timeout_startup")
    all_is_well(daemon)
    daemon.metric("poold_children", 0, kind="worker")
    assert held(daemon.pid) == before


@needs_strace
def test_mold_and_exporter_that_cannot_be_started(poold: Poold) -> None:
    """When the master cannot make a process for a new mold or exporter it tries again, and sessions go on meanwhile."""
    daemon = poold().start(laws=False)
    exporter = exporter_of(daemon)
    with daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
        with traced(daemon.folder, daemon.pid, "inject=clone,clone3,vfork:error=EAGAIN:when=1..3") as tracer:
            os.kill(exporter, signal.SIGKILL)
            os.kill(mold_of(daemon), signal.SIGKILL)
            eventually(lambda: len(tracer.lines("EAGAIN")) >= 3, "three failures")
            has_gone(exporter)
            assert client.ask("echo undisturbed") == "undisturbed"
    daemon.metric("poold_mold_starts_total", 2)
    daemon.metric("poold_children_spawned_total", 2, kind="exporter")
    all_is_well(daemon)


# ---- Descriptors -------------------------------------------------------------------------------------------------------------


def test_accept_without_descriptors(poold: Poold) -> None:
    """Out of descriptors the master leaves accept alone for 100 ms at a time; clients wait in the kernel, sessions notice nothing."""
    daemon = poold().start()
    with daemon.connect() as one:
        assert one.ask("echo hello") == "hello"
        with ExitStack() as stack:
            with out_of_files(daemon.pid):
                two = stack.enter_context(daemon.connect())
                two.send(b"echo at last\n")
                first = eventually(lambda: daemon.events("accept_error"), "an error of accept")[0]
                assert (first["errno"], first["pause_seconds"]) == ("EMFILE", 0.1)
                eventually(lambda: daemon.metrics().total("poold_accept_errors_total", errno="EMFILE") >= 4, "errors of accept")
                assert one.ask("echo undisturbed") == "undisturbed"
                assert daemon.metrics().total("poold_connections_accepted_total") == 1
            assert two.line() == "at last"
    daemon.metric("poold_sessions_ended_total", 2, cause="ok")
    all_is_well(daemon)


@needs_strace
def test_pause_after_a_failed_accept(poold: Poold) -> None:
    """Between two tries to accept while descriptors are short there are 100 ms, whatever else wakes the master."""
    daemon = poold().start()
    with ExitStack() as stack, traced(daemon.folder, daemon.pid, "inject=accept4:error=ENFILE:when=1..4") as tracer:
        client = stack.enter_context(daemon.connect())
        assert client.ask("echo at last") == "at last"
        tries = tracer.times("accept4(")[:5]
    assert all(later - earlier >= 0.099 for earlier, later in pairwise(tries))
    assert daemon.metrics().total("poold_accept_errors_total", errno="ENFILE") == 4
    all_is_well(daemon)


def test_control_client_without_descriptors(poold: Poold) -> None:
    """Out of descriptors a client of the control socket does not make the master spin."""
    daemon = poold().start()
    with out_of_files(daemon.pid), daemon.connect() as client, socket.socket(socket.AF_UNIX) as control:
        control.connect(str(daemon.control))
        before = daemon.metrics()["poold_master_loop_seconds_count"]
        # So many pauses of 100 ms have passed.
        eventually(lambda: daemon.metrics().total("poold_accept_errors_total", errno="EMFILE") >= 6, "errors of accept")
        assert daemon.metrics()["poold_master_loop_seconds_count"] - before < 1000
        client.send(b"echo at last\n")
    all_is_well(daemon)


@needs_strace
@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("socketpair", "EMFILE"),
        ("setsockopt", "ENOMEM"),
        ("sendmsg", "ENOBUFS"),
        ("sendmsg", "ETOOMANYREFS"),
        ("epoll_ctl", "ENOSPC"),
    ],
)
def test_order_that_fails_half_way(poold: Poold, call: str, error: str) -> None:
    """Whatever fails between accept and the order for a worker: the client is served later, and nothing leaks."""
    daemon = poold(options=COLD).start()
    before = held(daemon.pid)
    with ExitStack() as stack, traced(daemon.folder, daemon.pid, f"inject={call}:error={error}:when=1") as tracer:
        client = stack.enter_context(daemon.connect())
        assert client.ask("echo at last") == "at last"
        assert len(tracer.lines(f"{call}(", error)) == 1
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    daemon.metric("poold_children", 0, kind="worker")
    assert held(daemon.pid) == before
    all_is_well(daemon)


@needs_strace
def test_hand_over_that_fails(poold: Poold) -> None:
    """When the kernel has no room for a connection on its way to a spare, it is sent again, and no worker pays for it."""
    daemon = poold(options={"pool.min_spare": 2}).start()
    spares_of(daemon, 2)
    with ExitStack() as stack:
        with traced(daemon.folder, daemon.pid, "inject=sendmsg:error=ENOBUFS:when=1"):
            client = stack.enter_context(daemon.connect())
            assert client.ask("echo at last") == "at last"
        metrics = daemon.metrics()
        assert metrics.total("poold_children_reaped_total", kind="worker") == 0
        # The two that were there and the one that replaces the one that serves.
        assert metrics.total("poold_children_spawned_total", kind="worker") <= 3
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    all_is_well(daemon)


@needs_strace
def test_refusal_that_cannot_be_watched(poold: Poold) -> None:
    """A client is refused with the message and the end even when its last moments cannot be watched."""
    daemon = poold(options={**COLD, **REFUSING, "pool.max_children": 1}).start()
    with daemon.connect() as one:
        assert one.ask("echo hello") == "hello"
        daemon.metric("poold_children_active", 1)
        before = held(daemon.pid)
        with traced(daemon.folder, daemon.pid, "inject=epoll_ctl:error=ENOSPC:when=1"), daemon.connect() as refused:
            assert refused.rest() == b"busy\n"
        eventually(lambda: held(daemon.pid) == before, "the refused connection is closed")
    daemon.metric("poold_connections_refused_total", 1, reason="full")
    daemon.metric("poold_children", 0, kind="worker")
    all_is_well(daemon)


@needs_strace
def test_control_client_that_cannot_be_watched(poold: Poold) -> None:
    """A control client that cannot be watched may get no answer, but leaves nothing behind; the next one is answered."""
    daemon = poold(options=COLD).start()
    before = held(daemon.pid)
    with traced(daemon.folder, daemon.pid, "inject=epoll_ctl:error=ENOSPC:when=1"):
        assert daemon.cli("status", "--socket", str(daemon.control)).returncode in (0, 3)
    assert daemon.ask("status")["phase"] == "running"
    eventually(lambda: held(daemon.pid) == before, "the client's connection is closed")
    all_is_well(daemon)


@needs_strace
def test_gate_that_cannot_be_opened(poold: Poold) -> None:
    """When the listeners cannot be watched again after a full house, the master tries again instead of staying deaf."""
    daemon = poold(options={**COLD, "pool.max_children": 1}).start()
    with daemon.connect() as one, daemon.connect() as two:
        assert one.ask("echo hello") == "hello"
        daemon.metric("poold_accepting", 0)
        two.send(b"echo at last\n")
        with traced(daemon.folder, daemon.pid, "inject=epoll_ctl:error=ENOSPC:when=1"):
            assert one.finish() == b""
            assert two.line() == "at last"
    daemon.metric("poold_sessions_ended_total", 2, cause="ok")
    all_is_well(daemon)


@needs_strace
def test_exporter_start_that_fails_half_way(poold: Poold) -> None:
    """When a new exporter's lifeline cannot be made, nothing of the try is left open, and the next try succeeds."""
    daemon = poold(options=COLD).start()
    before = held(daemon.pid)
    with traced(daemon.folder, daemon.pid, "inject=socketpair:error=EMFILE:when=1") as tracer:
        os.kill(exporter_of(daemon), signal.SIGKILL)
        eventually(lambda: tracer.lines("EMFILE"), "a failure")
        daemon.metric("poold_children_spawned_total", 2, kind="exporter")
    assert len(held(daemon.pid)) == len(before)
    all_is_well(daemon)


@needs_strace
@pytest.mark.parametrize(
    ("calls", "error", "when"),
    [
        ("memfd_create", "EMFILE", 1),
        ("memfd_create", "ENFILE", 2),
        ("memfd_create", "EMFILE", 3),
        ("clone,clone3,vfork", "EAGAIN", 1),
        ("socketpair", "EMFILE", 1),
        ("epoll_ctl", "ENOSPC", 1),
    ],
)
def test_reload_that_fails_half_way(poold: Poold, calls: str, error: str, when: int) -> None:
    """Whatever the kernel refuses once during a reload: it has a result, sessions go on, nothing leaks, and the next one is applied."""
    daemon = poold(options=COLD).start()
    with daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
        daemon.metric("poold_children_active", 1)
        before = held(daemon.pid)
        processes = children_of(daemon.pid)
        with traced(daemon.folder, daemon.pid, f"inject={calls}:error={error}:when={when}") as tracer:
            daemon.kill(signal.SIGHUP)
            daemon.metric("poold_reloads_total", 1)
            # A vfork that is refused becomes a fork (subprocess).
            assert 1 <= len(tracer.lines(error)) <= 2
            eventually(lambda: len(children_of(daemon.pid)) == len(processes), "its trial and one of the molds are gone")
        eventually(lambda: len(held(daemon.pid)) == len(before), "nothing is left open")
        assert client.ask("echo undisturbed") == "undisturbed"
        mark = daemon.mark()
        daemon.kill(signal.SIGHUP)
        daemon.event("reload_applied", after=mark)
    all_is_well(daemon)


# ---- What children have ------------------------------------------------------------------------------------------------------


def test_descriptors_of_children(poold: Poold) -> None:
    """Spares and serving workers have 0, 1, 2, a page and one socket that is theirs alone, nor any of each other's."""
    daemon = poold(options={"pool.min_spare": 2}).start()
    with daemon.connect() as one, daemon.connect() as two:
        pids = [int(one.ask("pid")), int(two.ask("pid")), *spares_of(daemon, 2)]
        taken = {file for file in open_files(daemon.pid).values() if file.startswith("socket:")}
        for pid in pids:
            files = open_files(pid)
            [own] = (file for fd, file in files.items() if fd > 2 and not file.startswith("/memfd:poold-activity"))
            assert len(files) == 5
            assert own.startswith("socket:")
            assert own not in taken
            taken.add(own)


def test_descriptors_of_a_worker_that_goes_on(poold: Poold) -> None:
    """A worker that serves several connections has its channel besides."""
    options = {"pool.connections_per_child": 2, "pool.max_children": 1, "pool.min_spare": 0, "pool.max_spare": 1}
    daemon = poold(options=options).start()
    for expected in (6, 5):
        with daemon.connect() as client:
            assert len(open_files(int(client.ask("pid")))) == expected
            client.finish()


def test_descriptors_of_a_command(poold: Poold) -> None:
    """A command has its connection as 0 and 1, the logger's pipe as 2, and nothing else."""
    daemon = poold(options={"server.handler": None, "server.command": ["sh", "-c", "echo $$; exec cat"]}).start()
    with daemon.connect() as client:
        pid = int(client.line())
        files = eventually(lambda: files if sorted(files := open_files(pid)) == [0, 1, 2] else {}, "0, 1 and 2")
        assert files[0] == files[1]
        assert files[0].startswith("socket:")
        assert files[2].startswith("pipe:")


def test_descriptors_that_poold_was_started_with(poold: Poold) -> None:
    """What a careless parent left open reaches no child."""
    left_open = "for fd in (30, 31): os.dup2(os.open('/etc/passwd', os.O_RDONLY), fd, inheritable=True)"
    daemon = poold(options={"pool.min_spare": 1}).start(prelude=left_open)
    [spare] = spares_of(daemon, 1)
    for pid in (spare, mold_of(daemon), exporter_of(daemon)):
        assert "/etc/passwd" not in open_files(pid).values()


def test_end_of_a_session_beside_another(poold: Poold) -> None:
    """A client sees the end of its session at once although a worker that was made later lives on."""
    daemon = poold(options=COLD).start()
    with daemon.connect() as one, daemon.connect() as two:
        assert one.ask("echo one") == "one"
        assert two.ask("echo two") == "two"
        one.send(b"exit 0\n")
        assert one.rest() == b""
        assert two.ask("echo still here") == "still here"
        with daemon.connect() as three:
            assert three.ask("echo three") == "three"
            two.send(b"signal 9\n")
            assert two.rest() == b""


def test_program_that_outlives_its_session(poold: Poold) -> None:
    """A program that a handler starts carelessly gets neither the connection nor anything of poold's: the client sees its end."""
    daemon = mischievous(poold).start()
    with daemon.connect() as client:
        program = int(client.ask("program sleep 600"))
        eventually(lambda: Path(f"/proc/{program}/exe").resolve().name.startswith(("sleep", "coreutils")), "the program runs")
        assert sorted(open_files(program)) == [0, 1, 2]
        assert client.finish() == b""
    assert alive(program)
    os.kill(program, signal.SIGKILL)
    has_gone(program)


# ---- Streams -----------------------------------------------------------------------------------------------------------------


@needs_root
def test_log_on_a_full_disk(poold: Poold) -> None:
    """On a full disk the log's lines are dropped and counted, the service goes on, and the log does when there is space again."""
    daemon = poold()
    with small_disk(daemon.folder / "disk") as disk, ended(daemon):
        kept, daemon.log = daemon.log, disk / "log"
        daemon.start()
        fill(disk / "filler")
        for _ in range(40):
            with daemon.connect() as client:
                assert client.ask("echo hello") == "hello"
        daemon.metric("poold_sessions_ended_total", 40, cause="ok")
        assert daemon.metrics()["poold_log_dropped_total"] > 40
        (disk / "filler").unlink()
        with daemon.connect() as client:
            assert client.ask("echo hello") == "hello"
        eventually(lambda: '"session": 41, "cause": "ok"' in daemon.log.read_text(), "the log goes on")
        assert daemon.stop() == 0
        kept.write_bytes(daemon.log.read_bytes())
        daemon.log = kept
    whole = [line for line in kept.read_text().splitlines() if _is_record(line)]
    # The line that met the end of the disk is in pieces; none after it is.
    assert len(kept.read_text().splitlines()) - len(whole) <= 1
    assert json.loads(whole[-1])["event"] == "stopped"


def _is_record(line: str) -> bool:
    try:
        return "event" in json.loads(line)
    except ValueError:
        return False


def _serves_without_its_log(daemon: Daemon) -> None:
    for _ in range(5):
        with daemon.connect() as client:
            assert client.ask("echo hello") == "hello"
    daemon.metric("poold_sessions_ended_total", 5, cause="ok")
    metrics = daemon.metrics()
    assert metrics["poold_log_dropped_total"] >= 5
    assert metrics["poold_loop_errors_total"] == 0
    assert daemon.get("/healthz") == 200
    assert terminated(daemon) == 0


def test_log_on_a_device_that_is_always_full(poold: Poold) -> None:
    """A log that takes no line from the start on is no reason not to serve, nor to exit with anything but 0."""
    daemon = poold()
    with ended(daemon):
        daemon.start(prelude="fd = os.open('/dev/full', os.O_WRONLY)\nos.dup2(fd, 1)\nos.dup2(fd, 2)\nos.close(fd)")
        _serves_without_its_log(daemon)


def test_log_to_a_reader_that_was_never_there(poold: Poold) -> None:
    """Started with its output and its log in a pipe that nobody will ever read, poold serves and exits with 0."""
    daemon = poold()
    with ended(daemon):
        daemon.start(prelude="reader, writer = os.pipe()\nos.close(reader)\nos.dup2(writer, 1)\nos.dup2(writer, 2)\nos.close(writer)")
        _serves_without_its_log(daemon)


def test_log_to_a_reader_that_leaves(poold: Poold) -> None:
    """When the reader of the log leaves, lines are dropped and counted, and nothing else happens."""
    daemon = poold()
    pipe = Pipe(daemon.folder / "pipe")
    with ended(daemon):
        daemon.start(prelude=pipe.prelude)
        assert '"event": "ready"' in eventually(pipe.text)
        pipe.close()
        _serves_without_its_log(daemon)


def test_log_to_a_reader_that_does_not_read(poold: Poold) -> None:
    """A full pipe stops nobody: lines are dropped and counted, whole ones follow when it is read again, its mode is left alone."""
    daemon = poold()
    pipe = Pipe(daemon.folder / "pipe")
    with ended(daemon):
        daemon.start(prelude=pipe.prelude)
        pipe.fill()
        for number in range(20):
            with daemon.connect() as client:
                assert client.ask(f"echo {number}") == str(number)
        daemon.metric("poold_sessions_ended_total", 20, cause="ok")
        assert daemon.get("/healthz") == 200
        assert daemon.metrics()["poold_log_dropped_total"] >= 20
        assert open_flags(daemon.pid, 2) & os.O_NONBLOCK == 0
        assert pipe.text().endswith("x")
        with daemon.connect() as client:
            assert client.ask("echo hello") == "hello"
        daemon.metric("poold_sessions_ended_total", 21, cause="ok")
        lines = pipe.text().splitlines()
        assert [line for line in lines if not _is_record(line)] == []
        assert any('"session_ended"' in line for line in lines)
        assert daemon.metrics()["poold_loop_errors_total"] == 0
        assert terminated(daemon) == 0
    pipe.close()


def closed_pipe(daemon: Daemon, command: str) -> tuple[int, str]:
    """Run a command whose output meets a closed pipe; return its exit status and what it said about it."""
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [*command.split(), *(["-c", str(daemon.config)] if not command.startswith("-") else [])]
    program = [sys.executable, "-m", "poold", *arguments]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True, env=environ, cwd=daemon.folder, check=False)
    os.close(writer)
    return done.returncode, done.stderr


def test_output_that_nobody_reads(poold: Poold) -> None:
    """A command whose output meets a closed pipe ends without a word about it, and not with an exit status that nobody knows."""
    daemon = poold(options={"server.user": "root"} if os.geteuid() == 0 else {}).start()
    for command in ("--version", "--help", "check", "check --print", "status", "ps", "ps --json"):
        assert closed_pipe(daemon, command) == (0, ""), command

"""The logger: nobody waits for the log, nobody dies of it, and no line in it says that it is another's."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poold.log import LINE_MAX, RECORD, Log
from poold.logger.lines import PIECE_MAX, LineBuffer
from poold.logger.records import EVENTS, FIELDS, LineLog, record_output, record_own
from poold.master.children.streams import reopen
from tests.childkit import mold_of
from tests.faultkit import Pipe, ended, terminated, traced
from tests.needs import needs_root, needs_strace
from tests.procfs import children_of, gone, open_files, open_flags, state, status_fields, take_orphans
from tests.support import Client, Daemon, Poold
from tests.upgradekit import upgrade, upgraded
from tests.waiting import eventually


def printer(poold: Poold, **options: Any) -> Daemon:
    """Make a daemon whose handler does everything to its streams."""
    daemon = poold()
    daemon.write(options={"server.handler": "printer:serve", **options})
    return daemon


def logger_of(daemon: Daemon) -> int:
    """Return the logger's pid, when it serves."""
    rows = eventually(lambda: [row for row in daemon.children("logger") if row["state"] == "serving"], "a logger")
    return int(rows[0]["pid"])


def output(daemon: Daemon) -> list[str]:
    """Return the lines that handlers have printed."""
    return [event["line"] for event in daemon.events("handler_output")]


# ---- From bytes to lines: pure -----------------------------------------------------------------------------------------------


def fed(chunks: list[bytes]) -> list[bytes]:
    """Return the lines of these chunks."""
    lines = LineBuffer()
    found = [line for chunk in chunks for line in lines.feed(chunk)]
    return [*found, *lines.flush()]


MARK = RECORD.encode()
PARTS = [b"\n", MARK, MARK + b'{"event":"handler_failed"}\n', b"x" * 9000]
STREAMS = st.lists(st.binary(max_size=5000) | st.sampled_from(PARTS), max_size=10)


@given(STREAMS)
@example([b"x" * 10_000])
@example(["€".encode() * 3000])
@example([MARK + b"x" * 10_000, b"\n"])
def test_no_byte_is_lost(chunks: list[bytes]) -> None:
    """Whatever comes in whatever chunks, every byte but the ends of lines is in a line, in order, and lines are bounded."""
    lines = fed(chunks)
    assert b"".join(lines) == b"".join(chunks).replace(b"\n", b"")
    assert all(0 < len(line) <= (LINE_MAX if line.startswith(MARK) else PIECE_MAX) for line in lines)


@given(STREAMS, st.data())
def test_chunks_do_not_matter(chunks: list[bytes], data: st.DataObject) -> None:
    """Where the bytes are cut on their way changes nothing for lines that are short enough."""
    whole = b"".join(chunks)
    lines = [line for part in whole.split(b"\n") for line in re.split(b"(?=" + MARK + b")", part) if line]
    if any(len(line) > PIECE_MAX for line in lines):
        return
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    assert fed([whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]) == lines


def test_characters_are_not_cut() -> None:
    """Text without line breaks is told in pieces of whole characters."""
    pieces = fed(["€".encode() * 3000])
    assert len(pieces) > 4
    assert "".join(piece.decode() for piece in pieces) == "€" * 3000


@given(st.sampled_from(["text", "json"]), st.sampled_from([record_own, record_output]), st.binary(max_size=LINE_MAX), st.booleans())
@example("json", record_output, b'{"event": "handler_failed", "session": 1e999, "traceback": "\\ud800"}', True)
@example("json", record_output, b'{"event": "handler_failed", "session": NaN}', True)
@example("json", record_output, b'{"event": "handler_failed", "session": [1]}', True)
@example("json", record_output, b'{"event": ["handler_failed"]}', True)
@example("text", record_output, b"[" * 4000, True)
@example("text", record_own, b"\x1b]0;owned\x07", True)
def test_any_bytes_are_a_line_of_the_log(form: str, note: Any, data: bytes, framed: bool) -> None:
    """Whatever is written into a pipe becomes one printable line of bounded length, and JSON where JSON is asked for."""
    log = LineLog()
    log.configure(format=form, level="debug", journal=False)
    note(log, (MARK if framed else b"") + data.replace(b"\n", b"").replace(MARK, b""))
    [line] = log.take()
    assert len(line) <= LINE_MAX + 1
    text = line.decode()
    assert text[:-1].isprintable()
    if form == "json" and note is record_output:
        record = json.loads(text, parse_constant=pytest.fail)
        assert record["event"] == "handler_output" or (record["event"] in EVENTS and record["by"] == "child")


fields = st.dictionaries(st.text(max_size=10) | st.sampled_from(["session", "traceback", "level", "by", "time"]), st.text(max_size=30))


@given(st.sampled_from([*EVENTS, "stopped", "ready", "session_ended", ""]), fields)
def test_a_child_cannot_say_more_than_it_may(event: str, said: dict[str, str]) -> None:
    """A record from a process with user code is one of four events, has their fields alone, and bears the mark of a child's word."""
    log = LineLog()
    log.configure(format="json", level="debug", journal=False)
    record_output(log, MARK + json.dumps({**said, "event": event}).encode())
    record = json.loads(log.take()[0])
    if event in EVENTS:
        assert (record["event"], record["by"], record["level"]) == (event, "child", EVENTS[event])
        assert record.keys() <= {"time", "level", "event", "by", *FIELDS}
    else:
        assert record["event"] == "handler_output"


def test_a_record_of_a_child_is_what_the_log_writes() -> None:
    """What a worker's log writes is understood: fields and traceback come out as they went in."""

    class Kept(Log):
        def put(self, line: bytes) -> bool:
            record_output(recorder, line.rstrip(b"\n"))
            return True

    recorder = LineLog()
    recorder.configure(format="json", level="debug", journal=False)
    child = Kept()
    child.configure(format="raw", level="info", framed=True, journal=False)
    child.error("handler_failed", session=7, peer="[::1]:80", traceback='File "x"\n\x1b boom \\ ü')
    record = json.loads(recorder.take()[0])
    assert (record["session"], record["peer"], record["by"]) == (7, "[::1]:80", "child")
    assert record["traceback"] == 'File "x"\\n\\x1b boom \\ ü'


# ---- Handlers and their streams ----------------------------------------------------------------------------------------------


def test_what_a_handler_prints(poold: Poold) -> None:
    """Each line that a handler or its import prints is one event, at once, whatever the level; so is half a line, a moment later."""
    daemon = printer(poold, **{"log.level": "error"}).start()
    with daemon.connect() as client:
        client.ask("print hello \x1b[31m")
        eventually(
            lambda: output(daemon) == ["imported", "hello \\x1b[31m", "hello \\x1b[31m"], "what was printed, before the session ends"
        )
        client.ask("half without an end")
        eventually(lambda: "without an end" in output(daemon), "half a line")
    assert all(json.loads(line) for line in daemon.log.read_text().splitlines())


def test_what_a_command_prints(poold: Poold) -> None:
    """What a command writes to its standard error is told like what a handler prints."""
    command = ["sh", "-c", "echo to the log >&2; echo to the client"]
    daemon = poold(options={"server.handler": None, "server.command": command}).start()
    with daemon.connect() as client:
        assert client.rest() == b"to the client\n"
    daemon.event("handler_output", line="to the log")


def test_streams_cannot_be_damaged(poold: Poold) -> None:
    """A handler can neither truncate nor read nor seek what it prints to, nor open it anew for that."""
    daemon = printer(poold).start()
    size = daemon.mark()
    with daemon.connect() as client:
        words = client.ask("damage").split()
        assert [word for word in words if word == "done"] == ["done", "done"]  # the two that were not tried
        client.ask("damage again")
        files = open_files(int(client.ask("pid")))
        assert str(daemon.log) not in files.values()
    assert daemon.mark() >= size
    assert daemon.events("starting")


def test_nonblocking_is_nobody_elses(poold: Poold) -> None:
    """A handler that sets O_NONBLOCK changes neither the master's stream nor the log's, and its siblings print as before."""
    daemon = printer(poold).start()
    with daemon.connect() as one, daemon.connect() as two:
        one.ask("unblock")
        for pid in (daemon.master, logger_of(daemon)):
            assert not open_flags(pid, 2) & os.O_NONBLOCK
        two.ask("pour 2000")
        eventually(lambda: f"{1999:08d} {'x' * 90}" in output(daemon), "all of it")
    assert len([line for line in output(daemon) if line.endswith("x")]) == 2000


FORGED = [
    b'{"time": "2026-01-01T00:00:00.000Z", "level": "info", "event": "stopped", "exit_status": 0}\n',
    b"2026-01-01T00:00:00.000Z info stopped exit_status=0\n",
    MARK + b'{"time": "2026-01-01T00:00:00.000Z", "level": "info", "event": "stopped", "exit_status": 0}\n',
    b"<3>poold: stopped\n",
    b"\r\x1b[2K2026-01-01T00:00:00.000Z info stopped\n",
    MARK + b"\n" + MARK + MARK + b'{"event": "stopped"}\n',
]


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_line_can_be_forged(poold: Poold, form: str) -> None:
    """Whatever a handler writes, as it is, is a line that a handler wrote; the best it can do is a child's own word, marked so."""
    daemon = printer(poold, **{"log.format": form}).start()
    with daemon.connect() as client:
        for line in FORGED:
            client.ask(f"raw {line.hex()}")
        client.ask("raw " + (MARK + b'{"event": "handler_failed", "session": 99, "by": "poold", "level": "debug"}\n').hex())
        # Who leaves half a line spoils nobody's record.
        client.ask(f"raw {b'half of a line'.hex()}")
        client.send(b"raise error\n")
        client.rest()
    last = '"error": "ValueError"' if form == "json" else "error=ValueError"
    eventually(lambda: last in daemon.log.read_text(), "the handler's failure")
    lines = daemon.log.read_text().splitlines()
    assert [line for line in lines if re.search(r'(Z info |event": ")stopped', line) and "handler_output" not in line] == []
    failed = [line for line in lines if re.search(r'(error |event": ")handler_failed', line)]
    assert len(failed) == 2
    assert all(('"by": "child"' if form == "json" else " by=child") in line for line in failed)
    if form == "json":
        assert output(daemon)[1:] == [
            "".join(c if c.isprintable() else {"\r": "\\r"}.get(c, f"\\x{ord(c):02x}") for c in part)
            for line in [*FORGED, b"half of a line"]
            for part in line.decode().rstrip("\n").replace("\n", "").replace(RECORD, f"\n{RECORD}").split("\n")
            if part
        ]


def test_a_process_that_a_session_left_does_not_hold_up_the_end(poold: Poold) -> None:
    """The logger ends with the master although somebody still has its pipe, and the last line is in the log by then."""
    daemon = printer(poold).start()
    with daemon.connect() as client:
        left = int(client.ask("leave_printing"))
    daemon.metric("poold_sessions_ended_total", 1)
    assert daemon.stop() == 0
    assert json.loads(daemon.log.read_text().splitlines()[-1])["event"] == "stopped"
    os.kill(left, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(left, 0)


# ---- The logger's own life ---------------------------------------------------------------------------------------------------


def test_who_has_what(poold: Poold) -> None:
    """The logger has the log's stream and nothing of the service; the master keeps it, mold and sessions do not."""
    daemon = printer(poold).start()
    files = open_files(logger_of(daemon))
    assert files[1] == files[2] == str(daemon.log)
    assert sorted(re.sub(r":\[.*", "", file) for file in files.values()) == sorted(
        ["/dev/null", str(daemon.log), str(daemon.log), "pipe", "pipe", "socket"]
    )
    assert str(daemon.log) not in open_files(mold_of(daemon)).values()
    if os.geteuid() == 0:
        assert int(status_fields(logger_of(daemon))["Uid"].split()[0]) != os.stat(f"/proc/{daemon.master}").st_uid


def test_killed_logger_is_replaced(poold: Poold) -> None:
    """A logger that is killed again and again is replaced, sessions do not notice, and nothing that had not been read is lost."""
    daemon = printer(poold).start()
    with daemon.connect() as client:
        for number in range(3):
            pid = logger_of(daemon)
            os.kill(pid, signal.SIGSTOP)
            eventually(lambda pid=pid: state(pid) == "T", "it reads nothing")
            for line in range(20):
                client.ask(f"print {number}-{line}")
            os.kill(pid, signal.SIGKILL)
            assert client.ask("echo undisturbed") == "undisturbed"
            eventually(lambda pid=pid: gone(pid), "its end")
        daemon.event("handler_output", line="2-19")
        assert [line for line in output(daemon) if "-" in line] == [f"{n}-{line}" for n in range(3) for line in range(20) for _ in "12"]
    metrics = daemon.metrics()
    assert metrics.total("poold_children_failed_total", reason="signal") == 3
    assert metrics.total("poold_children_spawned_total", kind="logger") == 4
    assert metrics["poold_log_dropped_total"] == 0


def test_nobody_waits_for_a_logger_that_does_nothing(poold: Poold) -> None:
    """While the logger stands still, sessions print in vain and end, the master goes on, and what is missing is counted and told."""
    daemon = printer(poold, **{"pool.max_children": 20}).start()
    logger = logger_of(daemon)
    os.kill(logger, signal.SIGSTOP)
    for _ in range(10):
        with daemon.connect() as client:
            assert client.ask("pour 500") == "done"
    daemon.metric("poold_sessions_ended_total", 10, cause="ok")
    fill_own_pipe(daemon)
    assert daemon.get("/healthz") == 200
    os.kill(logger, signal.SIGCONT)
    told = eventually(lambda: _one_more(daemon) and daemon.events("log_dropped"), "what is missing")
    assert told[0]["lines"] > 0


def _one_more(daemon: Daemon) -> bool:
    with daemon.connect() as client:
        return client.ask("echo x") == "x"


def fill_own_pipe(daemon: Daemon) -> None:
    """Have the master write more than the pipe to the logger holds."""
    for _ in range(40):
        for _ in range(25):
            assert _one_more(daemon)
        if daemon.metrics()["poold_log_dropped_total"]:
            return
    raise AssertionError("the pipe is never full")


def test_reload_changes_the_format(poold: Poold) -> None:
    """After a reload with another format what handlers print has it too, and the logger is the same."""
    daemon = printer(poold).start()
    logger = logger_of(daemon)
    daemon.write(options={"server.handler": "printer:serve", "log.format": "text"})
    assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
    with daemon.connect() as client:
        client.ask("print hello")
        eventually(lambda: "info handler_output line=hello" in daemon.log.read_text(), "a line of text")
    assert logger_of(daemon) == logger


def test_upgrades(poold: Poold) -> None:
    """Over upgrades the logger is replaced by the new program's, sessions of before print as before, and no line is lost."""
    daemon = printer(poold).start()
    first = logger_of(daemon)
    with daemon.connect() as client:
        for number in range(3):
            client.ask(f"print before {number}")
            upgraded(daemon)
            client.ask(f"print after {number}")
        daemon.event("handler_output", line="after 2")
        assert [line for line in output(daemon) if line.startswith(("before", "after"))] == [
            f"{when} {number}" for number in range(3) for when in ("before", "after") for _ in "12"
        ]
        client.send(b"raise error\n")
        client.rest()
    daemon.event("handler_failed", by="child")
    assert len(daemon.events("upgrade_applied")) == 3
    eventually(lambda: len(daemon.children("logger")) == 1, "one logger")
    assert logger_of(daemon) != first
    assert daemon.events("stray_output") == []
    assert open_files(daemon.master)[2].startswith("pipe:")
    assert daemon.metrics()["poold_log_dropped_total"] == 0


def test_stack_of_a_stuck_master_is_in_the_log(poold: Poold) -> None:
    """What a fatal signal makes the master say, as the watchdog's does, is in the log, although the master is dead by then."""
    daemon = printer(poold).start(laws=False)
    before = children_of(os.getpid())
    daemon.kill(signal.SIGABRT)
    assert daemon.wait() == -signal.SIGABRT
    take_orphans(before)
    lines = [event["line"] for event in daemon.events("stray_output")]
    assert lines[0] == "Fatal Python error: Aborted"
    assert any("loop.py" in line for line in lines)
    daemon.control.unlink()


OTHERS_PIPE = """
import os, sys
from poold.master.children.streams import Streams
reader, writer = os.pipe()
os.dup2(writer, 2)
os.setresuid(65534, 65534, 65534)
streams = Streams()
streams.open()
print(streams.logged, os.readlink("/proc/self/fd/2") == os.readlink(f"/proc/self/fd/{writer}"))
"""


@needs_root
def test_another_users_pipe(tmp_path: Path) -> None:
    """Where the log's pipe is another user's, and cannot be opened anew, a logger writes to it and nobody else has it."""
    done = subprocess.run([sys.executable, "-c", OTHERS_PIPE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@needs_strace
def test_upgrade_that_cannot_be_executed(poold: Poold) -> None:
    """An upgrade that is undone leaves the streams as they were."""
    daemon = printer(poold).start(laws=False)
    before = open_files(daemon.master)[2]
    with traced(daemon.folder, daemon.pid, "inject=execve:error=ENOENT"):
        assert upgrade(daemon).returncode == 1
        # The quiet moment that a tracer is to be left in: the new mold has been reaped.
        daemon.metric("poold_children", 1, kind="mold")
    daemon.event("upgrade_undone")
    assert open_files(daemon.master)[2] == before
    with daemon.connect() as client:
        client.ask("print hello")
    daemon.event("handler_output", line="hello")


def test_a_killed_master_takes_the_logger_along(poold: Poold) -> None:
    """When the master is killed the logger writes what there is and ends by itself."""
    daemon = printer(poold).start(laws=False)
    with daemon.connect() as client:
        client.ask("print the last words")
        everybody = children_of(daemon.master)
        daemon.crash()
        client.rest()
    assert [pid for pid in everybody if not gone(pid)] == []
    assert "the last words" in output(daemon)
    daemon.control.unlink()


def test_the_last_line_of_a_drain(poold: Poold) -> None:
    """What a session prints in the last moment of a drain is in the log when poold has ended, and so is its own last line."""
    daemon = printer(poold, **{"timeouts.drain": 60}).start()
    client = daemon.connect()
    client.ask("pid")
    daemon.kill()
    daemon.event("draining", sessions=1)
    client.ask("print and that was all")
    client.close()
    assert daemon.wait() == 0
    assert output(daemon).count("and that was all") == 2
    assert json.loads(daemon.log.read_text().splitlines()[-1])["event"] == "stopped"


def test_a_start_that_fails_says_so(poold: Poold) -> None:
    """Why poold could not start stands in the log, after what was said before, also when the logger had been started."""
    daemon = poold()
    with socket.create_server(("127.0.0.1", 0)) as other:
        daemon.write(settings=f'[[listener]]\naddress = "tcp://127.0.0.1:{other.getsockname()[1]}"\n', options={})
        daemon.start(wait=False)
        assert daemon.wait() == 1
    lines = daemon.log.read_text().splitlines()
    assert "cannot listen" in lines[-1]
    assert any('"starting"' in line for line in lines)


# ---- Disks -------------------------------------------------------------------------------------------------------------------


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """Mount a small ext4 that can be frozen."""
    if not all(map(shutil.which, ("mkfs.ext4", "fsfreeze"))):
        pytest.skip("mkfs.ext4 or fsfreeze is not installed")
    image = folder.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    folder.mkdir()
    if subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=False).returncode:
        pytest.skip("no image of a disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["fsfreeze", "-u", str(folder)], check=False, stderr=subprocess.DEVNULL)
        eventually(lambda: subprocess.run(["umount", str(folder)], check=False).returncode == 0, "unmounted")


@needs_root
def test_disk_that_stands_still(poold: Poold) -> None:
    """While the log's disk is frozen the logger alone waits for it; everybody else goes on, drops and counts, and the log does after it."""
    daemon = printer(poold)
    kept = daemon.log
    with disk(daemon.folder / "disk") as place, ended(daemon):
        daemon.log = place / "log"
        daemon.start()
        logger = logger_of(daemon)
        subprocess.run(["fsfreeze", "-f", str(place)], check=True)
        assert _one_more(daemon)
        eventually(lambda: state(logger) == "D", "the logger waits for the disk")
        with daemon.connect() as client:
            assert client.ask("pour 10000") == "done"
        fill_own_pipe(daemon)
        assert daemon.get("/healthz") == 200
        assert state(logger) == "D"
        subprocess.run(["fsfreeze", "-u", str(place)], check=True)
        eventually(lambda: _one_more(daemon) and daemon.events("log_dropped"), "how many are missing")
        assert daemon.metrics()["poold_loop_errors_total"] == 0
        assert daemon.stop() == 0
        kept.write_bytes(daemon.log.read_bytes())
        daemon.log = kept
    assert all(json.loads(line)["event"] for line in kept.read_text().splitlines())
    assert json.loads(kept.read_text().splitlines()[-1])["event"] == "stopped"


@needs_root
def test_a_stop_while_the_disk_stands_still(poold: Poold) -> None:
    """Poold ends with 0 although its log's disk is frozen; the logger, which nobody can end, follows when the disk goes on."""
    daemon = printer(poold)
    kept = daemon.log
    with disk(daemon.folder / "disk") as place, ended(daemon):
        daemon.log = place / "log"
        daemon.start(laws=False)
        logger = logger_of(daemon)
        subprocess.run(["fsfreeze", "-f", str(place)], check=True)
        assert _one_more(daemon)
        eventually(lambda: state(logger) == "D", "the logger waits for the disk")
        assert terminated(daemon) == 0
        subprocess.run(["fsfreeze", "-u", str(place)], check=True)
        os.waitpid(logger, 0)
        daemon.log = kept


# ---- Streams without a logger ------------------------------------------------------------------------------------------------


def test_reader_that_stops_reading_keeps_no_place(poold: Poold) -> None:
    """Handlers that print to a log's pipe that nobody reads end with their clients: nobody is left waiting to be read."""
    daemon = printer(poold, **{"pool.max_children": 8, "pool.min_spare": 2})
    pipe = Pipe(daemon.folder / "pipe")
    with ended(daemon):
        daemon.start(prelude=pipe.prelude)
        pipe.fill()
        for _ in range(24):
            with daemon.connect() as client:
                assert client.ask("pour 3") == "done"
        daemon.metric("poold_sessions_ended_total", 24, cause="ok")
        assert daemon.metrics()["poold_sessions_active"] == 0
        assert terminated(daemon) == 0
    pipe.close()


def test_nobody_dies_when_the_reader_leaves(poold: Poold) -> None:
    """When the log's reader has gone, handlers print, molds say what they have to say, and new ones and reloads work as before."""
    daemon = printer(poold, **{"pool.min_spare": 1})
    pipe = Pipe(daemon.folder / "pipe")
    with ended(daemon):
        # With no memory to lock, each mold has a line to say.
        daemon.start(prelude=f"import resource\nresource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))\n{pipe.prelude}")
        assert '"event": "ready"' in eventually(pipe.text)
        pipe.close()
        first = mold_of(daemon)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: gone(first), "its end")
        for _ in range(5):
            with daemon.connect() as client:
                assert client.ask("print nobody reads this") == "ok"
        assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
        with daemon.connect() as client:
            assert client.ask("print nor this") == "ok"
            client.send(b"raise error\n")
            client.rest()
        daemon.metric("poold_sessions_ended_total", 6 - 1, cause="ok")
        daemon.metric("poold_sessions_ended_total", 1, cause="exit")
        metrics = daemon.metrics()
        assert metrics["poold_mold_starts_total"] == 3
        assert metrics.total("poold_children_failed_total", reason="stillborn") == 0
        assert terminated(daemon) == 0


def test_children_have_a_pipe_of_their_own(poold: Poold) -> None:
    """Where the log's stream is a pipe, what a handler does to its open file is not the master's, and it cannot be read from."""
    daemon = printer(poold)
    pipe = Pipe(daemon.folder / "pipe")
    with ended(daemon):
        daemon.start(prelude=pipe.prelude)
        assert daemon.children("logger") == []
        with daemon.connect() as client:
            assert int(client.ask("flags")) & os.O_ACCMODE == os.O_WRONLY
            client.ask("unblock")
            assert not open_flags(daemon.master, 2) & os.O_NONBLOCK
            client.ask("print to the pipe")
        assert "to the pipe" in eventually(pipe.text)
        assert terminated(daemon) == 0
    pipe.close()


def test_a_terminal_cannot_be_read(poold: Poold) -> None:
    """A handler under a terminal can write to it, and not read what its owner types."""
    daemon = printer(poold)
    ours, theirs = os.openpty()
    with ended(daemon):
        name = os.ttyname(theirs)
        daemon.start(prelude=f"fd = os.open({name!r}, os.O_RDWR | os.O_NOCTTY)\nos.dup2(fd, 1)\nos.dup2(fd, 2)\nos.close(fd)")
        with daemon.connect() as client:
            assert int(client.ask("flags")) & os.O_ACCMODE == os.O_WRONLY
        assert terminated(daemon) == 0
    os.close(ours)
    os.close(theirs)


def test_reopening(tmp_path: Path) -> None:
    """A pipe is opened anew for writing alone also when nobody reads it, without waiting."""
    reader, writer = os.pipe()
    os.close(reader)
    opened = reopen(writer)
    flags = int(Path(f"/proc/self/fdinfo/{opened}").read_text().split()[3], 8)
    assert flags & (os.O_ACCMODE | os.O_NONBLOCK) == os.O_WRONLY
    os.close(opened)
    os.close(writer)


# ---- Floods ------------------------------------------------------------------------------------------------------------------


def test_a_flood_of_failures_is_told_in_part(poold: Poold) -> None:
    """Of hundreds of failing sessions a bounded number says why, the master says how many did not, and each end is logged."""
    daemon = printer(poold, **{"log.level": "info", "pool.max_children": 8}).start()
    for _ in range(50):
        clients: list[Client] = [daemon.connect() for _ in range(6)]
        for client in clients:
            client.send(b"raise error\n")
        for client in clients:
            client.rest()
            client.close()
    daemon.metric("poold_sessions_ended_total", 300, cause="exit")
    eventually(lambda: len(daemon.events("session_ended")) == 300, "every end")
    untold = eventually(lambda: [event for event in daemon.events("handler_failed") if "suppressed" in event], "how many were not told")
    told = [event for event in daemon.events("handler_failed") if "traceback" in event]
    # Those who failed at the same moment as the last one that is told may say why too.
    assert 50 <= len(told) <= 2 * (50 + 8)
    assert 300 - len(told) <= sum(event["suppressed"] for event in untold) <= 300 - 50
    with daemon.connect() as client:
        mark = daemon.mark()
        client.send(b"raise error\n")
        client.rest()
    daemon.event("handler_failed", after=mark, error="ValueError")


def test_clients_that_leave_are_told_by_their_sessions(poold: Poold) -> None:
    """A client that is gone has one line: that of its session's end."""
    daemon = printer(poold).start()
    for _ in range(60):
        with daemon.connect() as client:
            client.send(b"raise broken\n")
            client.rest()
    daemon.metric("poold_sessions_ended_total", 60, cause="client_gone")
    eventually(lambda: len(daemon.events("session_ended", cause="client_gone")) == 60, "every end")
    assert "client_gone" not in {json.loads(line)["event"] for line in daemon.log.read_text().splitlines()}


# ---- Terminals ---------------------------------------------------------------------------------------------------------------

HOSTILE = "\x1b]0;owned\x07\u202e\u2028\x9b"


def test_command_line_prints_nothing_that_a_terminal_obeys(poold: Poold, tmp_path: Path) -> None:
    """Whatever an import raises or prints, a file is named or an argument is, the command line shows it escaped."""
    daemon = poold()
    (daemon.folder / "hostile.py").write_text(f"print({HOSTILE!r})\nraise RuntimeError({HOSTILE!r})\n")
    daemon.write(options={"server.handler": "hostile:serve", "server.path": [str(daemon.folder)], "server.options": {"x": HOSTILE}})
    odd = daemon.folder / f"odd{HOSTILE}.toml"
    odd.write_text(daemon.config.read_text())
    good = daemon.folder / f"good{HOSTILE}.toml"
    good.write_text(odd.read_text().replace("hostile:serve", "poold.handlers.echo:serve"))
    missing = str(daemon.folder / f"missing{HOSTILE}.toml")
    said = []
    for arguments in (
        ("check", "-c", str(odd)),
        ("check", "-c", str(good)),
        ("check", "--print", "-c", str(good)),
        ("check", "-c", missing),
        ("run", "-c", missing),
        ("status", "--socket", missing),
        ("ps", "-c", missing),
        (HOSTILE,),
        ("check", f"--{HOSTILE}"),
    ):
        done = daemon.cli(*arguments)
        text = done.stdout + done.stderr
        assert text, arguments
        assert [line for line in text.split("\n") if not line.isprintable()] == [], arguments
        said.append(text)
    assert said[0].count("owned") >= 3

"""The table of rights: every process holds what it says and nothing else, and who holds more is found."""

import os
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import poold as package
from tests.childkit import mold_of
from tests.needs import needs_root
from tests.pythonkit import shared_python
from tests.rights import CHILDREN, CLAIMS, DESCRIPTORS, MAPPINGS, Holder, Process, Thing, broken_rights, look, table
from tests.support import Daemon, Poold
from tests.upgradekit import upgraded
from tests.waiting import eventually

USERS = [pytest.param({}, id="one user"), pytest.param({"server.user": "nobody"}, id="another user", marks=needs_root)]
KINDS = (Holder.MASTER, Holder.MOLD, Holder.SPARE, Holder.SESSION, Holder.EXPORTER)


def start(poold: Poold, options: dict[str, Any], python: str = sys.executable) -> Daemon:
    """Start a daemon whose folder its service user may read."""
    daemon = poold(options=options)
    if "server.user" in options:
        daemon.let_others_in()
    daemon.python = python
    return daemon.start()


def wrong(daemon: Daemon, **options: Any) -> list[str]:
    """Return what the table does not allow."""
    return broken_rights(daemon.master, metrics=daemon.metrics_port, control=str(daemon.control), **options)


def processes(daemon: Daemon) -> list[Process]:
    """Return all that there are, when there is one of each kind at least."""

    def all_kinds() -> list[Process]:
        found = list(look(daemon.master, metrics=daemon.metrics_port, control=str(daemon.control)).values())
        return found if {process.holder for process in found} >= set(KINDS) else []

    return eventually(all_kinds, "one of each kind")


def test_people_read_the_same_table() -> None:
    """The decisions have the tables that processes are held to, row by row."""
    text = (Path(package.__file__).parent / "DESIGN.md").read_text()
    for rows in (table(DESCRIPTORS), table(MAPPINGS)):
        assert rows in text
    for claim in CLAIMS:
        assert f"| {', '.join(claim.holders)} | {claim.what} | {claim.why} |\n" in text


@pytest.mark.parametrize("options", USERS)
def test_everybody_holds_what_the_table_says(poold: Poold, options: dict[str, Any]) -> None:
    """Master, mold, spares, sessions and exporter hold what their rows allow: with a status, after a reload and an upgrade."""
    with ExitStack() as stack:
        # Another user may not read the library of an interpreter under somebody's home.
        python = stack.enter_context(shared_python()) if options else sys.executable
        daemon = start(poold, options, python)
        one, two = stack.enter_context(daemon.connect()), stack.enter_context(daemon.connect())
        assert one.ask("echo one") == "one"
        assert two.ask("status busy") == "ok"
        processes(daemon)
        assert wrong(daemon) == []
        assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
        with daemon.connect() as three:
            assert three.ask("status busy too") == "ok"
            assert wrong(daemon) == []
        upgraded(daemon)
        with daemon.connect() as four:
            assert four.ask("echo four") == "four"
            processes(daemon)
            assert wrong(daemon) == []
        assert daemon.stop() == 0


def test_a_worker_that_goes_on_keeps_its_channel(poold: Poold) -> None:
    """With workers that serve several sessions, the channel is the only thing that a serving worker has besides, and it is told apart."""
    daemon = start(poold, {"pool.connections_per_child": 0})
    with daemon.connect() as client:
        assert client.ask("status busy") == "ok"
        assert wrong(daemon, reused=True) == []
        assert any("a channel" in text for text in wrong(daemon))


def test_the_table_is_about_what_there_is(poold: Poold) -> None:
    """Each kind of process has rows and claims, and what a row says must be there is found by the look in each such process."""
    daemon = start(poold, {})
    with daemon.connect() as client:
        assert client.ask("status busy") == "ok"
        for process in processes(daemon):
            assert process.holder is not None
            assert any(process.holder in claim.holders for claim in CLAIMS)
            held = {held.thing for held in process.held}
            mapped = {thing for thing, _, _ in process.mapped}
            assert {row.thing for row in DESCRIPTORS if row.holder is process.holder and row.least} <= held
            assert {row.thing for row in MAPPINGS if row.holder is process.holder and row.least} <= mapped
    keys = [(row.holder, row.thing) for row in DESCRIPTORS]
    assert len(keys) == len(set(keys))


# What a session does to itself, and what is found of it.
OFFENCES = {
    "listens": ("import socket; KEEP = socket.create_server(('127.0.0.1', 0))", Thing.LISTENER),
    "maps": ("import os; KEEP = os.memfd_create('poold-counters')", Thing.COUNTERS),
    "waits": ("import select; KEEP = select.epoll()", Thing.SELECTOR),
    "pipes": ("import os; KEEP = os.pipe()", Thing.PIPE),
    "opens": ("KEEP = open('/etc/passwd')", Thing.OTHER),
    "reads what is printed": ("import os; KEEP = os.open('/proc/self/fd/2', os.O_RDONLY)", "has r and not only w"),
    "reads the log": ("KEEP = open(connection.options['log'])", Thing.REAL_STREAM),
    "ignores": ("import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN)", "no signal is ignored"),
    "blocks": ("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])", "no signal is blocked"),
    "catches": ("import signal; signal.signal(signal.SIGUSR1, print)", "no signal is caught but SIGPIPE"),
    "shares": ("import os, time; KEEP = os.fork()\nif not KEEP: time.sleep(60)", None),
}


OFFENDER = """
import os

def serve(connection):
    exec({code!r}, globals() | {{"connection": connection}}, globals())
    connection.socket.sendall(b"done\\n")
    connection.socket.recv(1)
    if "fork" in {code!r}:
        os.kill(KEEP, 9)
"""


@pytest.mark.parametrize("name", OFFENCES)
def test_who_holds_more_is_found(poold: Poold, name: str) -> None:
    """What a session has that no row allows is found in that session and nowhere else; what it forks may have what is its own."""
    code, found = OFFENCES[name]
    daemon = poold()
    (daemon.folder / "offender.py").write_text(OFFENDER.format(code=code))
    options = {"server.handler": "offender:serve", "server.path": [str(daemon.folder)], "server.options": {"log": str(daemon.log)}}
    daemon.write(options=options)
    daemon.start()
    with daemon.connect() as client:
        assert client.line() == "done"
        (pid,) = (process.pid for process in processes(daemon) if process.holder is Holder.SESSION)
        texts = wrong(daemon)
        if found is None:
            assert texts == []
        else:
            assert texts
            assert all(text.startswith(f"serving worker {pid} ") for text in texts)
            assert any(str(found) in text for text in texts), texts
            # What sessions do to themselves is their own affair where they are not trusted.
            assert wrong(daemon, trusted=set()) == []


@needs_root
def test_a_listener_in_a_session_is_found_whoever_it_is(poold: Poold) -> None:
    """A descriptor of the master's in a process below it is found, trusted or not: here one that a test has carried there itself."""
    daemon = poold()
    (daemon.folder / "thief.py").write_text(
        "import array, os, socket\n"
        "def serve(connection):\n"
        "    with socket.socket(socket.AF_UNIX) as end:\n"
        f"        end.connect({str(daemon.folder / 'gift.sock')!r})\n"
        "        global KEEP\n"
        "        KEEP = socket.recv_fds(end, 1, 1)[1]\n"
        "        connection.socket.sendall(b'done\\n')\n"
        "        connection.socket.recv(1)\n"
    )
    daemon.write(options={"server.handler": "thief:serve", "server.path": [str(daemon.folder)]})
    path = daemon.folder / "gift.sock"
    with socket.socket(socket.AF_UNIX) as giver:
        giver.bind(str(path))
        giver.listen()
        daemon.start()
        with daemon.connect() as client:
            taker, _ = giver.accept()
            with taker:
                socket.send_fds(taker, [b"x"], [daemon.listener.fileno()])
                assert client.line() == "done"
                assert any("has a listening socket of the master's" in text for text in wrong(daemon, trusted=set()))
    path.unlink()


def test_who_is_traced_or_stopped_is_looked_at_too(poold: Poold) -> None:
    """A process that stands still is judged like any other, and one that has ended is not."""
    daemon = poold().start()
    mold = mold_of(daemon)
    os.kill(mold, signal.SIGSTOP)
    try:
        assert wrong(daemon) == []
    finally:
        os.kill(mold, signal.SIGCONT)
    daemon.stop()
    assert wrong(daemon) == []
    assert not Path(f"/proc/{mold}").exists()


def test_claims_name_their_holders() -> None:
    """A claim is about kinds of processes that there are, and has its reason."""
    for claim in CLAIMS:
        assert set(claim.holders) <= {Holder.MASTER, Holder.LOGGER, *CHILDREN}
        assert claim.why

"""The chat: real sessions in processes of their own, whose parent, the test, stands for the master.

Every test ends with every session gone by itself and nothing left on disk, or it fails.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import struct
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poold.handlers.chat import check_options
from poold.handlers.chat.hall import hall_name
from poold.handlers.chat.options import NUMBERS
from poold.handlers.chat.text import (
    Backlog,
    Bucket,
    LineSplitter,
    clean_line,
    common_form,
    decode,
    encode,
    encode_within,
    name_key,
    name_problem,
)
from tests.procfs import status_fields
from tests.support import Client as WireClient
from tests.support import Daemon
from tests.waiting import eventually

ROOT = Path(__file__).parents[1]
DEADLINE = 30.0
# Far below anything a session that waited for another would take.
PROMPT = 5.0

# What a worker does around a handler, as far as the handler can see it.
SESSION = """
import importlib, json, os, signal, socket, sys
from poold.address import Endpoint
from poold.connection import Connection
from poold.handlers import chat
fd, number, options, folder, constants, certificate = json.loads(sys.argv[1])

class FakeWorker:
    def stopping(self):
        return os.path.exists(folder + "/drain")
    def set_status(self, text):
        with open(f"{folder}/status-{os.getpid()}", "w") as file:
            file.write(text)

os.umask(0o077)
signal.signal(signal.SIGPIPE, lambda *_: None)
for name, value in constants.items():
    module, _, constant = name.rpartition(".")
    setattr(importlib.import_module("poold.handlers." + module), constant, value)
client = socket.socket(fileno=fd)
if certificate:
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    client = context.wrap_socket(client, server_side=True)
here = Endpoint.of(socket.AF_UNIX, "")
connection = Connection(client, id=number, peer=here, listener="test", options=options, worker=FakeWorker())
try:
    chat.serve(connection)
except ConnectionError:
    sys.exit(9)
connection.close()
"""
# By default a session wakes for nothing but what it is sent.
QUIET = {"chat.session.LOOK_SECONDS": 600.0}
# Stands for another master: its child is a session of another daemon.
OTHER_MASTER = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], close_fds=False))"


class Client:
    """One client and the process of its session."""

    def __init__(self, wire: socket.socket, process: subprocess.Popen[bytes], log: Path) -> None:
        self.wire = wire
        self.process = process
        self.log = log
        self.got = b""
        self._seen = 0
        wire.settimeout(DEADLINE)

    def say(self, *lines: str) -> None:
        self.wire.sendall("".join(f"{line}\n" for line in lines).encode())

    def hear(self, what: str, within: float = DEADLINE) -> str:
        """Return all that comes up to and with the next line that contains `what`."""
        deadline = time.monotonic() + within
        while True:
            *lines, _ = self.got[self._seen :].split(b"\n")
            for number, line in enumerate(lines):
                if what.encode() in line:
                    begin, passed = self._seen, lines[: number + 1]
                    self._seen += sum(map(len, passed)) + len(passed)
                    return self.got[begin : self._seen].decode()
            assert time.monotonic() < deadline, f"{what!r} was not heard within {within} seconds, but {self.got!r}"
            self.wire.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self.wire.recv(1 << 20)
            except TimeoutError:
                continue
            assert data, f"{what!r} was not heard, but {self.got!r} and the end\n{self.log.read_text()}"
            self.got += data

    def text(self) -> str:
        """Read to the end of file and return all that was ever heard."""
        self.wire.settimeout(DEADLINE)
        try:
            while data := self.wire.recv(1 << 20):
                self.got += data
        except ConnectionResetError:
            # The session ended with something of ours unread.
            pass
        return self.got.decode()

    def ended(self) -> int:
        """Return how the session's process has ended."""
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        """End the session without giving it a chance to do anything."""
        self.process.kill()
        self.ended()

    def leave(self) -> int:
        """Quit, and return how the session has ended."""
        self.say("/quit")
        self.text()
        return self.ended()


class Chat:
    """Makes clients, each with a session, all of one daemon unless told otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clients: list[Client] = []

    @property
    def base(self) -> Path:
        return self.folder / f"poold-chat-{os.geteuid()}"

    @property
    def hall(self) -> Path:
        return self.base / hall_name(os.getpid())

    def connect(
        self,
        *,
        tcp: bool = False,
        other: bool = False,
        constants: Mapping[str, object] = QUIET,
        certificate: str = "",
        anywhere: bool = False,
        **options: object,
    ) -> Client:
        """Start a session, with these options and with these constants changed, and return its client.

        With `anywhere` the chat has to find a place by itself, in the folder for temporary files.
        """
        wire, served = tcp_pair() if tcp else socket.socketpair()
        number = len(self.clients) + 1
        if not anywhere:
            options = {"directory": str(self.folder), **options}
        # Not where the chat of another test may be.
        constants = {"chat.hall.TEMPORARY_FOLDERS": [str(self.folder)], **constants}
        told = [served.fileno(), number, options, str(self.folder), constants, certificate]
        command = [sys.executable, "-c", SESSION, json.dumps(told)]
        if other:
            command = [sys.executable, "-c", OTHER_MASTER, *command]
        log = self.folder / f"log-{number}"
        with served, log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "TMPDIR": str(self.folder)},
                pass_fds=[served.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
        self.clients.append(Client(wire, process, log))
        return self.clients[-1]

    def member(self, name: str = "", **settings: Any) -> Client:
        """Return a client that has arrived, under this name."""
        client = self.connect(**settings)
        client.hear(" in #lobby: ")
        if name:
            client.say(f"/nick {name}")
            client.hear(f"You are now {name}.")
        return client

    def close(self) -> None:
        """End what runs; fail if something is left that should have gone."""
        for client in self.clients:
            client.wire.close()
        try:
            for client in self.clients:
                client.ended()
        finally:
            for client in self.clients:
                if client.process.poll() is None:
                    client.kill()
        assert not self.base.exists(), sorted(map(str, self.base.rglob("*")))


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the client's and the server's end of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    """A chat with nobody in it, which leaves nothing behind."""
    made = Chat(tmp_path)
    yield made
    made.close()


def test_two_talk(chat: Chat) -> None:
    """What one member says the other hears with the name before it, and the speaker does not hear it again."""
    alice, bob = chat.member("alice"), chat.member("bob")
    alice.say("hello", "/me waves", "//slashed")
    assert bob.hear("slashed") == "<alice> hello\n* alice waves\n<alice> /slashed\n"
    bob.say("hello yourself")
    alice.hear("<bob> hello yourself")
    assert "<alice>" not in alice.got.decode()


def test_arrival_and_departure_are_told(chat: Chat) -> None:
    """A new member is greeted and told who is there, and the room hears of its coming and going."""
    first = chat.member()
    second = chat.member()
    assert "Welcome to the chat, guest-2." in second.got.decode()
    assert "*** 2 in #lobby: guest-1, guest-2\n" in second.got.decode()
    first.hear("*** guest-2 joined #lobby")
    assert second.leave() == 0
    assert "*** Goodbye.\n" in second.text()
    first.hear("*** guest-2 left #lobby")


def test_rooms_are_apart(chat: Chat) -> None:
    """What is said in one of three rooms is heard in that room only."""
    rooms = {room: (chat.member(f"{room}-a"), chat.member(f"{room}-b")) for room in ("lobby", "red", "Blü.e")}
    for room, members in rooms.items():
        if room != "lobby":
            for member in members:
                member.say(f"/join #{room}")
                member.hear(f" in #{room}: ")
    for room, (speaker, _) in rooms.items():
        speaker.say(f"this is {room}", "/who")
        speaker.hear(f"2 in #{room}: {room}-a, {room}-b")
    for room, (speaker, listener) in rooms.items():
        listener.hear(f"<{room}-a> this is {room}")
        speaker.say("/rooms")
        assert speaker.hear("#red 2") == "*** #Blü.e 2\n*** #lobby 2\n*** #red 2\n"
    for room, (_, listener) in rooms.items():
        listener.leave()
        assert listener.text().count("> this is ") == 1, room


def test_moving_is_told_in_both_rooms(chat: Chat) -> None:
    """A member that goes to another room has left the one and joined the other, and an empty room is no more."""
    alice, bob, carol = chat.member("alice"), chat.member("bob"), chat.member("carol")
    carol.say("/join den")
    carol.hear("1 in #den: carol")
    alice.say("/join den")
    bob.hear("*** alice left #lobby")
    carol.hear("*** alice joined #den")
    for member in (alice, carol):
        member.say("/join lobby")
        member.hear(" in #lobby: ")
    assert [path.name for path in (chat.hall / "rooms").iterdir()] == ["lobby"]


def test_a_name_is_one_members_in_all_rooms(chat: Chat) -> None:
    """A name that somebody has, in whatever room and spelling, is refused to others until it is given up."""
    alice, bob = chat.member("Alice"), chat.member("bob")
    alice.say("/join elsewhere")
    alice.hear("1 in #elsewhere: Alice")
    bob.say("/nick alice")
    bob.hear("The name alice is taken.")
    alice.say("/nick ALICE")
    alice.hear("You are now ALICE.")
    alice.say("/nick anna")
    alice.hear("You are now anna.")
    bob.say("/nick alice", "/who")
    bob.hear("You are now alice.")
    bob.hear("1 in #lobby: alice")
    assert len(list((chat.hall / "names").iterdir())) == 2


def test_a_rename_is_told(chat: Chat) -> None:
    """The room hears of a new name, and what its bearer says next comes under it."""
    alice, bob = chat.member("alice"), chat.member("bob")
    alice.say("/nick anna", "hi")
    assert bob.hear("hi") == "*** alice is now anna\n<anna> hi\n"


def wide(text: str) -> str:
    """Return text of ASCII in the full-width form of its letters."""
    return "".join(chr(ord(letter) + 0xFEE0) for letter in text)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        (wide("alice"), "alice"),
        (wide("ALICE"), "alice"),
        ("\U0001d4ea\U0001d4f5\U0001d4f2\U0001d4ec\U0001d4ee", "alice"),
        ("\ufb01ona", "fiona"),
        ("Ange\u0301la", "angéla"),
        ("b²", "B2"),
        ("straße", "STRASSE"),
        ("\u017fam", "sam"),
        ("\u212belf", "ÅELF"),
    ],
)
def test_look_alikes_of_a_name_are_refused(chat: Chat, name: str, taken: str) -> None:
    """A name that is another's but for the form of its letters is that name, and taken."""
    chat.member(taken)
    bob = chat.member("bob")
    bob.say(f"/nick {name}", "/who")
    assert "is taken." in bob.hear("in #lobby")
    assert len(list((chat.hall / "names").iterdir())) == 2


def test_names_are_kept_in_their_common_form(chat: Chat) -> None:
    """A name and a room are shown, and found, in one form, whatever form they were given in."""
    alice, bob = chat.member(), chat.member("bob")
    alice.say(f"/nick {wide('alice')}", f"/join {wide('Den')}")
    alice.hear("You are now alice.")
    alice.hear("1 in #Den: alice")
    bob.say(f"/msg {wide('A')}lice hello", "/join Den")
    alice.hear("[bob to you] hello")
    alice.hear("bob joined #Den")


@pytest.mark.parametrize(
    "name",
    ["a\u200bb", "a\u200db", "a\u00adb", "a\ufeffb", "a\u2060b", "a\u3164b", "\u115fa", "a\uffa0", "a\u00a0b", "a\u3000b", "a\U000e0061b"],
)
def test_names_with_something_invisible_are_refused(chat: Chat, name: str) -> None:
    """A name in which something would not be seen is refused."""
    alice = chat.member("alice")
    alice.say(f"/nick {name}", f"/join {name}", "/who")
    assert alice.hear("in #lobby").count("*** A name has ") == 2


@pytest.mark.parametrize("name", ["", "../../etc", "a/b", "..", "-rf", "a b", "a\x1b[31mb", "\u202ebob", "x" * 21, "<bob>", "*"])
def test_odd_names_are_refused(chat: Chat, name: str) -> None:
    """A name or a room that could deceive, or that is no file name, is refused; the old one stays."""
    alice = chat.member("alice")
    alice.say(f"/nick {name}", f"/join {name}", "/who")
    answers = alice.hear("in #lobby")
    assert answers.count("*** A name has ") == 2
    assert answers.endswith("*** 1 in #lobby: alice\n")


def test_private_lines_reach_one_member(chat: Chat) -> None:
    """/msg reaches its addressee in another room, nobody else, and says so where there is no such member."""
    alice, bob, carol = chat.member("alice"), chat.member("Bob"), chat.member("carol")
    bob.say("/join den")
    bob.hear("1 in #den: Bob")
    alice.say("/msg bob psst", "/msg nobody psst", "/msg ../names/bob psst", "/msg bob", "and now aloud")
    bob.hear("[alice to you] psst")
    assert "called nobody" in alice.hear("called ../names/bob")
    alice.hear("Write /msg NAME TEXT.")
    assert "psst" not in carol.hear("and now aloud")


def test_help_and_unknown_commands(chat: Chat) -> None:
    """/help names every command, and a command that is not among them is answered and not said aloud."""
    alice, bob = chat.member("alice"), chat.member("bob")
    alice.say("/help", "/frobnicate", "/me", "done")
    text = alice.hear("There is no command /frobnicate")
    for command in ("/nick", "/join", "/who", "/rooms", "/me", "/msg", "/quit"):
        assert command in text
    assert "frobnicate" not in bob.hear("<alice> done")


def test_the_status_shows_room_and_name(chat: Chat) -> None:
    """What `poold ps` shows of a session is its room and its name."""
    alice = chat.member("alice")
    alice.say("/join den")
    alice.hear("in #den")
    assert (chat.folder / f"status-{alice.process.pid}").read_text() == "#den as alice"


def test_everybody_hears_everything(chat: Chat) -> None:
    """Twenty members say twenty lines each, all at once, and every one hears all of the others' lines, in each one's order."""
    members = [chat.connect() for _ in range(20)]
    for member in members:
        eventually(lambda member=member: counted(member) == 20, "all are here")  # type: ignore[misc]
    for number, member in enumerate(members):
        member.say(*(f"line {number}-{line}." for line in range(20)))
    for number, member in enumerate(members):
        for other in range(20):
            if other != number:
                wait_for_line(member, f" line {other}-19.")
        heard = [line.split(" line ")[1] for line in member.got.decode().splitlines() if "> line " in line]
        assert len(heard) == 19 * 20
        for other in range(20):
            expected = [] if other == number else [f"{other}-{line}." for line in range(20)]
            assert expected == [line for line in heard if line.startswith(f"{other}-")]


def counted(member: Client) -> int:
    """Return how many are in the lobby, as a member is told."""
    member.say("/who")
    return int(member.hear(" in #lobby: ").splitlines()[-1].split()[1])


def wait_for_line(member: Client, what: str) -> None:
    """Wait until it has been heard, now or before."""
    if what.encode() not in member.got:
        member.hear(what)


def test_who_never_reads_delays_nobody(chat: Chat) -> None:
    """Lines beyond a slow client's backlog are dropped, whole and counted; the others hear every line at once."""
    alice, bob = chat.member("alice", max_rate=0), chat.member("bob")
    slow = chat.member("slow", max_backlog=65536)
    for number in range(600):
        alice.say(f"line {number} " + 1000 * "x")
        bob.hear(f"<alice> line {number} ", within=PROMPT)
    alice.say("the end")
    bob.hear("the end")
    slow.hear("<alice> the end")
    lines = [line for line in slow.got.decode().splitlines() if line.startswith("<alice> line ")]
    assert all(len(line.split(" ", 3)[3]) == 1000 for line in lines)
    lost = lost_lines(slow)
    assert lost > 0
    assert len(lines) + lost == 600


def test_a_stopped_session_delays_nobody(chat: Chat) -> None:
    """What a stopped session's FIFO does not take is held and then dropped; continued, it is told how many lines it lost."""
    alice, bob, stopped = chat.member("alice", max_rate=0), chat.member("bob"), chat.member("stopped")
    os.kill(stopped.process.pid, signal.SIGSTOP)
    for number in range(1000):
        alice.say(f"line {number} " + 200 * "x")
        bob.hear(f"<alice> line {number} ", within=PROMPT)
    os.kill(stopped.process.pid, signal.SIGCONT)
    stopped.hear("<alice> line 999 ")
    lines = stopped.got.decode().count("<alice> line ")
    lost = lost_lines(stopped)
    assert lost > 0
    assert lines + lost == 1000


def lost_lines(client: Client) -> int:
    """Return how many lines it was told to have lost."""
    return sum(int(line.split()[1]) for line in client.got.decode().splitlines() if " lost: you read too slowly." in line)


def test_a_killed_session_is_cleared_away(chat: Chat) -> None:
    """The others go on when a session is killed, hear of it once, and its name can be taken again."""
    alice, bob, carol = chat.member("alice"), chat.member("bob"), chat.member("carol")
    carol.kill()
    assert (chat.hall / "names" / "carol").exists()
    alice.say("hello")
    alice.hear("*** carol was disconnected")
    bob.say("hello yourself")
    alice.hear("<bob> hello yourself")
    alice.say("again")
    assert bob.hear("<alice> again").count("*** carol was disconnected") == 1
    assert not (chat.hall / "names" / "carol").exists()
    assert not (chat.hall / "rooms" / "lobby" / "carol").exists()
    alice.say("/nick carol", "/who")
    assert "*** 2 in #lobby: bob, carol\n" in alice.hear("in #lobby")


def test_the_name_of_the_dead_is_free(chat: Chat) -> None:
    """A name whose bearer was killed can be taken before anybody has met the stale FIFO."""
    alice, bob = chat.member("alice"), chat.member("bob")
    bob.kill()
    alice.say("/nick Bob", "/who")
    alice.hear("You are now Bob.")
    alice.hear("1 in #lobby: Bob")


def test_the_dead_get_no_private_lines(chat: Chat) -> None:
    """/msg to a killed session's name says that nobody is called so."""
    alice, bob = chat.member("alice"), chat.member("bob")
    bob.kill()
    alice.say("/msg bob hello")
    alice.hear("Nobody here is called bob.")


def test_the_last_one_out_clears_away_the_dead(chat: Chat) -> None:
    """Whoever leaves last removes what killed sessions in other rooms have left."""
    alice, bob = chat.member("alice"), chat.member("bob")
    bob.say("/join den")
    bob.hear("in #den")
    bob.kill()
    alice.leave()
    assert not chat.base.exists()


def test_a_dead_daemons_hall_is_removed(chat: Chat) -> None:
    """A session that begins removes the halls in which nobody lives, and touches nothing else."""
    dead = chat.base / "4711-1-1"
    for folder in ("names", "rooms/lobby"):
        (dead / folder).mkdir(parents=True)
        os.mkfifo(dead / folder / "alice")
    chat.base.chmod(0o700)
    chat.member()
    eventually(lambda: not dead.exists(), "the dead daemon's hall is gone")


def test_two_daemons_do_not_mix(chat: Chat) -> None:
    """Sessions of two daemons of one uid do not hear each other and leave each other's halls alone."""
    ours, theirs = chat.member("same"), chat.member("same", other=True)
    chat.member("bob")
    ours.say("hello from us", "/who")
    assert "*** 2 in #lobby: bob, same\n" in ours.hear("in #lobby")
    theirs.say("/who")
    assert theirs.hear("in #lobby") == "*** 1 in #lobby: same\n"
    assert len(list(chat.base.iterdir())) == 2


def test_terminated_says_goodbye(chat: Chat) -> None:
    """SIGTERM ends an idle session at once: its client and its room are told, and the process ends by that signal."""
    alice, bob = chat.member("alice"), chat.member("bob")
    begin = time.monotonic()
    os.kill(alice.process.pid, signal.SIGTERM)
    assert alice.text().endswith("*** The server has ended this session.\n")
    assert alice.ended() == -signal.SIGTERM
    assert time.monotonic() - begin < PROMPT
    bob.hear("*** alice left #lobby", within=PROMPT)


def test_terminated_with_a_client_that_does_not_read(chat: Chat) -> None:
    """SIGTERM ends a session at once though its client takes nothing."""
    alice, slow = chat.member("alice", max_rate=0), chat.member("slow")
    alice.say(*(f"{number} " + 1000 * "x" for number in range(600)), "/who")
    alice.hear("in #lobby")
    os.kill(slow.process.pid, signal.SIGTERM)
    assert slow.process.wait(PROMPT) == -signal.SIGTERM


def test_a_drain_is_told(chat: Chat) -> None:
    """An idle client is told once that the server is going down, may go on, and is then ended without a word to its room."""
    quick = {"chat.session.LOOK_SECONDS": 0.05}
    alice, bob = chat.member("alice", constants=quick), chat.member("bob", constants=quick)
    (chat.folder / "drain").touch()
    alice.hear("*** The server is going down")
    bob.hear("*** The server is going down")
    alice.say("one last word")
    bob.hear("<alice> one last word")
    os.kill(bob.process.pid, signal.SIGTERM)
    assert bob.ended() == -signal.SIGTERM
    alice.leave()
    assert alice.text().count("going down") == 1
    assert "bob left" not in alice.text()


def test_a_stuck_lock_stops_nobody(chat: Chat) -> None:
    """While someone holds the lock and does not move, members talk and leave; what needs the lock is refused, and works later."""
    alice, bob = (chat.member(name, constants=QUIET | {"chat.hall.LOCK_WAIT": 0.1}) for name in ("alice", "bob"))
    lock = os.open(chat.hall, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    alice.say("/nick anna", "/join den", "hello")
    bob.hear("<alice> hello")
    alice.say("/who")
    assert alice.hear("2 in #lobby").count("*** The chat is busy; please try again.\n") == 2
    assert bob.leave() == 0
    assert list((chat.hall / "names").iterdir()) == [chat.hall / "names" / "alice"]
    os.close(lock)
    alice.say("/join den")
    alice.hear("1 in #den: alice")


def test_a_fifo_stays_young(chat: Chat) -> None:
    """A session that lasts keeps its FIFO from looking like something old in a temporary folder."""
    chat.member("alice", constants={"chat.session.LOOK_SECONDS": 0.02, "chat.session.REFRESH_SECONDS": 0.02})
    os.utime(chat.hall / "names" / "alice", (0, 0))
    eventually(lambda: (chat.hall / "names" / "alice").stat().st_mtime > 0, "the FIFO has a new date")


def test_a_hall_is_named_by_pid_and_start_time() -> None:
    """A daemon's hall is named by what no other process has, or by its pid alone where /proc does not say more."""
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert hall_name(os.getpid()) == f"{os.getpid()}-{started}-1"
    assert hall_name(1 << 22) == f"{1 << 22}-0-1"


def test_half_close_is_leaving(chat: Chat) -> None:
    """A client that closes its sending side is obeyed to the last line, also without newline, gets all answers, and has left."""
    bob = chat.member("bob")
    once = chat.connect()
    once.wire.sendall(b"/nick once\nhello\n/who")
    once.wire.shutdown(socket.SHUT_WR)
    assert once.text().endswith("*** You are now once.\n*** 2 in #lobby: bob, once\n")
    assert once.ended() == 0
    assert "<once> hello\n*** once left #lobby\n" in bob.hear("once left")


def test_a_client_that_closes_is_heard(chat: Chat) -> None:
    """The lines of a client that closes right after them are still said."""
    bob = chat.member("bob")
    once = chat.connect(tcp=True)
    once.say("hello")
    once.wire.close()
    bob.hear("<guest-2> hello")
    bob.hear("*** guest-2 left #lobby")


def test_nothing_sent(chat: Chat) -> None:
    """A client that connects and leaves without a word ends its session well."""
    client = chat.connect()
    client.wire.shutdown(socket.SHUT_WR)
    assert client.text().startswith("*** Welcome")
    assert client.ended() == 0


def test_a_reset_leaves_the_handler(chat: Chat) -> None:
    """A reset connection is the worker's to count; before that the room is told."""
    bob, client = chat.member("bob"), chat.member("alice", tcp=True)
    client.wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.wire.close()
    assert client.ended() == 9
    bob.hear("*** alice left #lobby")


def test_binary_is_harmless(chat: Chat) -> None:
    """Whatever bytes a client sends, others get printable text in valid UTF-8, and the session lives."""
    alice, bob = chat.member("alice", max_rate=0), chat.member("bob")
    for start in range(0, 256, 16):
        alice.wire.sendall(bytes((start + offset) % 256 for offset in range(48)).replace(b"\n", b"") + b"\n")
    alice.wire.sendall(bytes(range(256)) * 40 + b"\n")
    alice.say("still here")
    text = bob.hear("still here")
    assert all(line.isprintable() for line in text.split("\n"))
    assert all(line.startswith("<alice> ") for line in text.splitlines())


def test_escape_sequences_are_removed(chat: Chat) -> None:
    """Escape sequences, carriage returns, bidirectional overrides and telnet's commands do not reach others."""
    alice, bob = chat.member("alice"), chat.member("bob")
    sent = "a\x1b[31m\x1b]0;title\x07 b\rc\x00\x7f\x9b2J \u202ed \u2028e\tf\r\n".encode()
    alice.wire.sendall(b"\xff\xfb\x1f\xff\xfa\x1f\x00\x50\xff\xf0\xff\xf4" + sent)
    assert bob.hear("<alice>") == "<alice> a[31m]0;title bc2J \ufffdd  e f\n"


def test_five_megabytes_without_newline(chat: Chat) -> None:
    """An endless line is cut once, its rest skipped, its client told once; the session stays small and goes on."""
    alice, bob = chat.member("alice"), chat.member("bob")
    before = peak_memory(alice)
    for _ in range(5):
        alice.wire.sendall(b"x" * 1_000_000)
    alice.say("", "still here", "/who")
    assert alice.hear("in #lobby").count("*** That line was cut: a line has at most 2000 bytes.") == 1
    assert bob.hear("still here") == f"<alice> {'x' * 2000}\n<alice> still here\n"
    assert peak_memory(alice) - before < 2048


def peak_memory(client: Client) -> int:
    """Return the most memory a session has used, in KiB."""
    return int(status_fields(client.process.pid)["VmHWM"].split()[0])


def test_a_flood_is_cut_off(chat: Chat) -> None:
    """Lines beyond the rate are dropped with one notice, and those that pass are heard."""
    alice, bob = chat.member("alice", max_rate=1, max_burst=10), chat.member("bob")
    alice.say(*(f"line {number}" for number in range(2000)))
    alice.hear("Too fast")
    bob.hear("line 8")
    alice.wire.shutdown(socket.SHUT_WR)
    assert alice.text().count("Too fast") == 1
    bob.hear("alice left")
    assert bob.got.decode().count("<alice> line ") < 30


def test_a_long_line_fits_into_a_record(chat: Chat) -> None:
    """A line that grows when it is made harmless is cut between two characters, and nothing of it gets into another line."""
    alice, bob = chat.member("\U00010280" * 20, max_line=3500), chat.member("bob")
    alice.wire.sendall(b"\x80" * 3500 + b"\nnext\n")
    first, second = bob.hear("next").splitlines()
    assert set(first.partition("> ")[2]) == {"\ufffd"}
    assert second.endswith("> next")


def test_a_session_holds_two_descriptors(chat: Chat) -> None:
    """Beside its connection and 0, 1 and 2 a session has its FIFO and the hall's folder, however much was said."""
    alice, bob = chat.member("alice"), chat.member("bob")
    alice.say("/join den", "/who", "/rooms", "/msg bob hello", "/join lobby", "hello")
    bob.hear("<alice> hello")
    alice.say("/who")
    alice.hear("2 in #lobby")
    assert len(list(Path(f"/proc/{alice.process.pid}/fd").iterdir())) == 6


def test_the_folder_is_private(chat: Chat) -> None:
    """The folder is made with mode 0700, whatever its parent's."""
    chat.folder.chmod(0o1777)
    chat.member()
    assert stat.S_IMODE(chat.base.stat().st_mode) == 0o700
    assert stat.S_IMODE(chat.hall.stat().st_mode) == 0o700


@pytest.mark.parametrize("bait", ["open to others", "a symlink", "a file"])
def test_a_folder_that_is_not_private_is_refused(chat: Chat, bait: str) -> None:
    """A session does not begin in a folder that others can get at, and says what would help."""
    if bait == "open to others":
        chat.base.mkdir()
        chat.base.chmod(0o711)
    elif bait == "a symlink":
        (chat.folder / "elsewhere").mkdir(mode=0o700)
        chat.base.symlink_to(chat.folder / "elsewhere")
    else:
        chat.base.touch(mode=0o600)
    client = chat.connect()
    assert client.ended() == 1
    assert "is not a folder of uid" in client.log.read_text()
    if chat.base.is_dir() and not chat.base.is_symlink():
        chat.base.rmdir()
    else:
        chat.base.unlink()


def squat(path: Path, bait: str) -> None:
    """Put something where a folder of the chat would be, as another user could."""
    if bait == "a symlink to a folder":
        path.with_name("elsewhere").mkdir(mode=0o700)
        path.symlink_to(path.with_name("elsewhere"))
    elif bait == "a symlink to nothing":
        path.symlink_to(path.with_name("nothing"))
    elif bait == "a file":
        path.touch(mode=0o600)
    elif bait == "a FIFO":
        os.mkfifo(path)
    else:
        path.mkdir()
        path.chmod(0o777 if bait == "open to others" else 0o700)
        if bait == "another user's":
            os.chown(path, 4711, 4711)


BAITS = ["open to others", "another user's", "a symlink to a folder", "a symlink to nothing", "a file", "a FIFO"]


@pytest.mark.parametrize("bait", BAITS)
def test_a_folder_taken_in_advance(chat: Chat, bait: str) -> None:
    """Whatever another user puts where the chat's folder would be, sessions meet in a private one beside it, and touch none of it."""
    if bait == "another user's" and os.geteuid() != 0:
        pytest.skip("only root can act for another user")
    squat(chat.base, bait)
    before = chat.base.lstat()
    alice, bob = chat.member("alice", anywhere=True), chat.member("bob", anywhere=True)
    alice.say("hello")
    bob.hear("<alice> hello")
    [found] = [path for path in chat.folder.glob("poold-chat-*") if path != chat.base]
    assert (stat.S_ISDIR(found.lstat().st_mode), stat.S_IMODE(found.lstat().st_mode)) == (True, 0o700)
    # Should the place become free, who comes still goes where the others are.
    if bait == "a file":
        chat.base.unlink()
        chat.member("carol", anywhere=True).say("and I")
        bob.hear("<carol> and I")
        chat.base.touch()
    for client in chat.clients:
        client.leave()
    assert not found.exists()
    after = chat.base.lstat()
    assert bait == "a file" or (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    remove_bait(chat)


def remove_bait(chat: Chat) -> None:
    """Take away what was put in the chat's place, which has to be empty still."""
    if chat.base.is_dir() and not chat.base.is_symlink():
        chat.base.rmdir()
    else:
        chat.base.unlink()
    if (chat.folder / "elsewhere").exists():
        (chat.folder / "elsewhere").rmdir()


def test_a_folder_that_is_exchanged(chat: Chat) -> None:
    """When the folder's name is given to another one, those who are in stay together, nobody else joins them there, and all can leave."""
    alice, bob = chat.member("alice"), chat.member("bob")
    stolen = chat.base.rename(chat.folder / "stolen")
    squat(chat.base, "open to others")
    alice.say("still here?")
    bob.hear("<alice> still here?")
    bob.say("/join den", "/who")
    bob.hear("1 in #den: bob")
    late = chat.connect()
    assert late.ended() == 1
    assert "is not a folder of uid" in late.log.read_text()
    assert (alice.leave(), bob.leave()) == (0, 0)
    assert list(stolen.iterdir()) == []
    stolen.rmdir()
    # It is another's, and empty, and stays.
    remove_bait(chat)


def test_a_missing_directory_is_named(chat: Chat) -> None:
    """A session whose option `directory` is no folder ends with an error that names it."""
    client = chat.connect(directory=str(chat.folder / "missing"))
    assert client.ended() == 1
    assert f"No such file or directory: '{chat.folder}/missing/poold-chat-" in client.log.read_text()


def test_chat_over_tls(chat: Chat) -> None:
    """The chat is the same over TLS, also for lines that take many of its records."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    certificate, key_file = chat.folder / "certificate", chat.folder / "key"
    making = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key_file} -out {certificate} -days 2 -subj /CN=test"
    subprocess.run(making.split(), check=True, capture_output=True)
    certificate.write_text(key_file.read_text() + certificate.read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    bob = chat.member("bob", max_rate=0)
    alice = chat.connect(tcp=True, certificate=str(certificate), max_rate=0)
    alice.wire = context.wrap_socket(alice.wire)
    alice.hear("2 in #lobby")
    alice.say(*(f"line {number} " + 1000 * "x" for number in range(100)))
    bob.hear("line 99 ")
    bob.say(*(f"line {number} " + 1000 * "x" for number in range(1000)))
    alice.hear("line 999 ")
    assert alice.leave() == 0


def test_chat_as_poold_serves_it(poold: Callable[..., Daemon], tmp_path: Path) -> None:
    """Sessions of a real daemon meet, show in `poold ps`, say goodbye at SIGTERM, and leave nothing behind."""
    settings = {"server.handler": "poold.handlers.chat:serve", "server.options.directory": str(tmp_path)}
    daemon = poold(options=settings).start()
    with daemon.connect() as alice, daemon.connect() as bob:
        alice.send(b"/nick alice\n")
        heard_by(alice, "You are now alice.")
        bob.send(b"/nick bob\nhello\n")
        heard_by(alice, "<bob> hello")
        [row] = [row for row in daemon.children("worker") if row["status"] == "#lobby as bob"]
        os.kill(row["pid"], signal.SIGTERM)
        heard_by(bob, "The server has ended this session.")
        heard_by(alice, "bob left #lobby")
        daemon.metric("poold_sessions_ended_total", 1, cause="signal")
        assert alice.finish() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    assert list(tmp_path.glob("poold-chat-*")) == []


def heard_by(client: WireClient, what: str) -> None:
    """Read lines until one contains this; fail at the end of file."""
    while what not in (line := client.line()):
        assert line, f"{what!r} was not heard"


def test_options_have_defaults() -> None:
    """Without options the limits are those that the documentation names."""
    limits = check_options({})
    assert (limits.directory, limits.max_line, limits.max_backlog, limits.max_rate) == (None, 2000, 262144, 20)
    assert check_options({"max_backlog": "1MiB", "max_rate": 0}).max_backlog == 1048576


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_lines": 3}, "no option 'max_lines'; it has directory, max_line"),
        ({"max_line": "2000"}, "max_line is '2000'; write a whole number from 80 to 3500"),
        ({"max_line": True}, "max_line is True"),
        ({"max_line": 79}, "from 80 to 3500"),
        ({"max_name": 22}, "max_name is 22; write a whole number from 1 to 21"),
        ({"max_backlog": "1GiB"}, "max_backlog is '1GiB'"),
        ({"directory": "relative"}, "write the absolute path of a folder"),
        ({"directory": 3}, "directory is 3"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    """An option that is wrong is an error that says what would be right."""
    with pytest.raises(ValueError, match=re.escape(message)):
        check_options(options)


def test_defaults_are_within_their_bounds() -> None:
    """Every default is a value that could be written."""
    limits = check_options({name: default for name, (default, _, _) in NUMBERS.items()})
    assert [getattr(limits, name) for name in NUMBERS] == [default for default, _, _ in NUMBERS.values()]


@given(st.text(max_size=80))
def test_names_survive_being_file_names(name: str) -> None:
    """A name as a file name has no byte that means something to a file system, and comes back whole."""
    file_name = encode(name)
    assert decode(file_name) == name
    assert file_name.isascii()
    assert not set(file_name) & set("/.\0")


@given(st.text(max_size=30))
def test_names_that_are_accepted_are_file_names(name: str) -> None:
    """What passes as a name is short enough for a file name in every spelling, and shows nothing but itself."""
    if name_problem(name, 21) is None:
        assert 1 <= len(encode(name)) <= 255
        assert 1 <= len(name_key(name)) <= 255
        assert name.isprintable()
        assert not set(name) & set(" <>[]*#/@!%")


@given(st.text(max_size=30))
def test_one_form_of_a_name(name: str) -> None:
    """A name's form is its own form, and all forms and spellings of a name have one key."""
    form = common_form(name)
    assert common_form(form) == form
    for other in (form, name.casefold(), *(unicodedata.normalize(kind, name) for kind in ("NFC", "NFD", "NFKC", "NFKD"))):
        assert name_key(other) == name_key(name)


def test_no_letter_of_a_name_is_invisible() -> None:
    """Of all characters there are those that have no shape of their own are in no name."""
    hidden = {"Cf", "Cc", "Co", "Cs", "Cn", "Zl", "Zp", "Zs", "Mn", "Me", "Mc"}
    # Text that was decoded has no surrogates.
    for letter in map(chr, (*range(0xD800), *range(0xE000, sys.maxunicode + 1))):
        if name_problem(common_form(f"a{letter}"), 21) is None:
            assert not any(unicodedata.category(each) in hidden for each in common_form(f"a{letter}"))
            # The letters among what Unicode calls default-ignorable.
            assert letter not in "\u115f\u1160\u3164\uffa0"


@given(st.binary(max_size=300))
def test_clean_text_is_printable(line: bytes) -> None:
    """Whatever the bytes, the text can be shown, and cleaning it again changes nothing."""
    text = clean_line(line)
    assert text.replace("\u200c", "").replace("\u200d", "").isprintable()
    assert clean_line(text.encode()) == text


@given(st.text(max_size=50), st.integers(0, 100))
def test_fitting_cuts_between_characters(text: str, most: int) -> None:
    """A text is cut to so many bytes, never within a character, and not at all if it fits."""
    data = encode_within(text, most)
    assert text.startswith(data.decode())
    assert len(data) <= most
    assert len(text.encode()) > most or data == text.encode()


@given(st.lists(st.binary(max_size=20)), st.integers(1, 12))
def test_lines_do_not_depend_on_how_they_arrive(pieces: list[bytes], most: int) -> None:
    """However the bytes are cut up on their way, the lines are the same: those of the whole, cut to their most."""
    splitter = LineSplitter(most)
    found = [line for piece in pieces for line in splitter.feed(piece)] + splitter.finish()
    *lines, rest = b"".join(pieces).split(b"\n")
    if rest:
        lines.append(rest)
    assert found == [(line[:most], len(line) > most) for line in lines]


@given(st.lists(st.tuples(st.binary(max_size=30), st.integers(0, 60))), st.integers(40, 100))
def test_a_backlog_is_bounded_and_honest(events: list[tuple[bytes, int]], most: int) -> None:
    """Whatever is added and sent, the lines that come out and those reported lost are all that went in, in their order."""
    backlog = Backlog(most)
    out = b""

    def take(count: int) -> bytes:
        data = backlog.chunk()[:count]
        backlog.sent(len(data))
        return data

    for number, (data, count) in enumerate(events):
        backlog.add(b"%d:" % number + data.hex().encode()[:30] + b"\n")
        out += take(count)
    while backlog:
        out += take(1000)
    lines = out.decode().splitlines()
    lost = sum(int(line.split()[1]) for line in lines if line.startswith("***"))
    numbers = [int(line.split(":")[0]) for line in lines if not line.startswith("***")]
    assert numbers == sorted(set(numbers))
    assert len(numbers) + lost == len(events)


@given(st.lists(st.floats(0, 10)), st.integers(1, 20), st.integers(1, 50))
def test_a_bucket_keeps_its_rate(pauses: list[float], rate: int, burst: int) -> None:
    """Never do more lines pass than the burst and what the rate gives in the time that has gone by."""
    now = passed = 0.0
    bucket = Bucket(rate, burst, now)
    for pause in pauses:
        now += pause
        passed += bucket.take(now)
        assert passed <= burst + rate * now + 1e-6

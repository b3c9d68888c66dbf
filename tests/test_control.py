"""The control socket: whatever comes to it the master never errs, what it answers is whole, and what it holds is bounded."""

import array
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poold import rpc
from poold.master.clients import sockets
from poold.master.engine.loop import Loop
from poold.master.engine.signals import Inbox
from poold.master.outside import control
from poold.master.outside.control import Answer, Control, Reply
from tests.faultkit import at_the_gate, traced
from tests.needs import needs_root, needs_strace
from tests.procfs import open_files
from tests.support import Client, Poold
from tests.waiting import DEADLINE, eventually

VIEW = b'{"verb": "view"}\n'


class Bench:
    """A real control socket and a real loop in this process; its verbs do nothing but answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inbox = Inbox()
        self.loop = Loop(self._inbox, lambda signals: None, lambda: None)
        # What is not ready is not waited for.
        self.loop.eager = True
        self.asked: list[tuple[dict[str, Any], Reply]] = []
        self.document: dict[str, Any] = {"ok": True}
        self.shown = os.open("/dev/null", os.O_RDONLY)
        verbs = {"view": self._view, "reload": lambda request, reply: self.asked.append((request, reply))}
        self.control = Control(loop=self.loop, verbs=verbs)
        self.control.open(sockets.open_control(str(path), patience=0))

    def _view(self, _: dict[str, Any], reply: Reply) -> None:
        reply(Answer(self.document, [self.shown]))

    def turn(self, times: int = 12) -> None:
        for _ in range(times):
            self.loop.turn()

    def connect(self) -> socket.socket:
        """Return a client that the loop knows of."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(DEADLINE)
        client.connect(str(self.path))
        self.turn(2)
        return client

    def answer(self, client: socket.socket) -> bytes:
        """Return what a client gets until its connection ends, b"" when nothing has come so far."""
        self.turn()
        client.setblocking(False)
        data = b""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while part := client.recv(1 << 20):
                data += part
        return data

    def known(self) -> int:
        """Return how many clients are held."""
        return len(self.control._clients)

    def close(self) -> None:
        self.control.close()
        self.loop.close()
        for end in (self._inbox._reader, self._inbox._writer):
            end.close()
        os.close(self.shown)


@pytest.fixture(scope="module")
def shared_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One for all examples."""
    made = Bench(tmp_path_factory.mktemp("control") / "control.sock")
    yield made
    assert made.loop.errors == 0
    made.close()
    assert not made.path.exists()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """One of the test's own."""
    made = Bench(tmp_path / "control.sock")
    yield made
    assert made.loop.errors == 0
    made.close()


def rights(fd: int, times: int) -> list[tuple[int, int, Any]]:
    """Return what goes along with a message that passes a descriptor so many times."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * times))] if times else []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["verb", "dry_run", "now", ""]) | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)
REQUESTS = st.one_of(
    st.binary(max_size=200),
    JSON.map(lambda value: json.dumps(value).encode() + b"\n"),
    st.fixed_dictionaries({"verb": st.sampled_from(["view", "reload", "VIEW", "view\0", "", "stop"])}, optional={"dry_run": JSON}).map(
        lambda value: json.dumps(value).encode() + b"\n"
    ),
    # Deep, long, and both; a number that Python would rather not read.
    st.tuples(st.sampled_from([b"[", b'{"a":', b"9", b"\0", b"x", b"\xff"]), st.integers(1, 10_000)).map(
        lambda pair: pair[0] * pair[1] + b"\n"
    ),
)


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(REQUESTS, min_size=1, max_size=4), passes=st.integers(0, 3), closes=st.sampled_from(["", "half", "all"]))
def test_whatever_comes_the_master_never_errs(shared_bench: Bench, pieces: list[bytes], passes: int, closes: str) -> None:
    """Any bytes, in any pieces, with descriptors or without, are answered by at most one line of JSON; nothing is left afterwards."""
    bench = shared_bench
    before = len(os.listdir("/proc/self/fd"))
    with bench.connect() as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for number, piece in enumerate(pieces):
                rights = (
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [bench.shown] * passes))] if passes and number == 0 else []
                )
                client.sendmsg([piece], rights, socket.MSG_NOSIGNAL)
                bench.turn(3)
            if closes == "half":
                client.shutdown(socket.SHUT_WR)
        if closes != "all":
            answer = bench.answer(client)
            if answer:
                assert answer.count(b"\n") == 1
                assert answer.endswith(b"\n")
                assert isinstance(json.loads(answer)["ok"], bool)
    bench.turn()
    for _, reply in bench.asked:
        reply(Answer({"ok": True}))
    bench.asked.clear()
    bench.turn()
    assert (bench.known(), bench.loop.errors) == (0, 0)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("size", "taken"), [(rpc.REQUEST_MAX, True), (rpc.REQUEST_MAX + 1, False), (1 << 20, False)])
@pytest.mark.parametrize("ends", [True, False])
def test_a_line_of_bounded_length(bench: Bench, size: int, taken: bool, ends: bool) -> None:
    """A request has at most 4096 bytes, its end included; of a longer one no more than that is kept, and it is refused."""
    line = b'{"verb": "view", "x": "' + b"x" * (size - 26) + b'"}' + (b"\n" if ends else b"x")
    assert len(line) == size
    with bench.connect() as client:
        client.setblocking(False)
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            while sent < size:
                sent += client.send(line[sent : sent + 1000])
                bench.turn(2)
                assert all(len(each.request) <= 2 * rpc.REQUEST_MAX for each in bench.control._clients)
        answer = bench.answer(client)
    if taken and not ends:
        assert answer == b""
    elif taken:
        assert json.loads(answer)["ok"] is True
    elif answer:
        # A reset, for what was sent and not read, may have been quicker.
        assert json.loads(answer) == {"ok": False, "error": "the request is longer than 4096 bytes"}
    else:
        assert size == 1 << 20


def test_a_silent_client_has_its_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not finish its request is let go after a while, and one that has asked waits as long as it takes."""
    monkeypatch.setattr(control, "CLIENT_SECONDS", 0.05)
    with bench.connect() as silent, bench.connect() as waiting:
        silent.send(b'{"verb": "vi')
        waiting.send(b'{"verb": "reload"}\n')
        eventually(lambda: (bench.turn(), bench.known() == 1)[1], "the silent one is let go")
        assert silent.recv(10) == b""
        bench.asked[0][1](Answer({"ok": True, "late": 1}))
        assert json.loads(bench.answer(waiting)) == {"ok": True, "late": 1}


def test_a_hundred_idle_clients(poold: Poold) -> None:
    """Of a hundred clients that say nothing the last eight are held, and whoever asks is answered."""
    daemon = poold().start()
    before = len(open_files(daemon.master))
    with contextlib.ExitStack() as clients:
        idle = [clients.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(100)]
        for client in idle:
            # Without a time-out connect() waits for room in the queue.
            client.connect(str(daemon.control))
        assert daemon.ask("status")["phase"] == "running"
        eventually(lambda: len(open_files(daemon.master)) <= before + control.CLIENTS_MAX, "the others are closed")
        idle[0].settimeout(DEADLINE)
        assert idle[0].recv(10) == b""
    eventually(lambda: len(open_files(daemon.master)) <= before, "all are closed")


def test_a_crowd_that_waits_is_bounded(bench: Bench) -> None:
    """Of clients whose answers are being made so many wait; one more is told that the daemon is busy."""
    with contextlib.ExitStack() as clients:
        crowd = [clients.enter_context(bench.connect()) for _ in range(1)]
        crowd[0].send(b'{"verb": "reload"}\n')
        for _ in range(control.WAITING_MAX - 1):
            crowd.append(clients.enter_context(bench.connect()))
            crowd[-1].send(b'{"verb": "reload"}\n')
            bench.turn(2)
        assert bench.known() == len(bench.asked) == control.WAITING_MAX
        one_more = clients.enter_context(bench.connect())
        one_more.send(VIEW)
        assert "busy" in json.loads(bench.answer(one_more))["error"]


# Answers.


@pytest.mark.parametrize("size", [10, 200_000, 1_000_000])
def test_an_answer_is_whole(bench: Bench, size: int) -> None:
    """An answer that the client's buffer has no room for is finished as the client reads, its descriptors once."""
    bench.document = {"ok": True, "text": "x" * size}
    with bench.connect() as client:
        client.send(VIEW)
        bench.turn()
        data, came = b"", []
        while not data.endswith(b"\n"):
            part, ancillary, _, _ = client.recvmsg(50_000, 1000)
            assert part, "cut"
            data += part
            came += [fd for _, _, payload in ancillary for (fd,) in struct.iter_unpack("i", payload)]
            bench.turn(2)
        assert json.loads(data) == bench.document
        assert len(came) == 1
        os.close(came[0])
        assert client.recv(10) == b""
    assert bench.known() == 0


def test_an_answer_that_is_too_long(bench: Bench) -> None:
    """An answer of more than a client takes is replaced by one that says so."""
    bench.document = {"ok": True, "text": "x" * rpc.ANSWER_MAX}
    with bench.connect() as client:
        client.send(VIEW)
        assert json.loads(bench.answer(client)) == {"ok": False, "error": "the answer is too long; the log has it"}


def test_a_client_that_does_not_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not read a long answer is let go after a while, or when others come; nobody waits for him."""
    monkeypatch.setattr(control, "CLIENT_SECONDS", 0.05)
    bench.document = {"ok": True, "text": "x" * 1_000_000}
    with contextlib.ExitStack() as clients:
        for _ in range(20):
            deaf = clients.enter_context(bench.connect())
            deaf.send(VIEW)
            bench.turn(3)
            assert bench.known() <= control.CLIENTS_MAX + 1
        # An upgrade would answer the client that waits for it, never one of these.
        assert bench.control.find_waiting("view") is None
        eventually(lambda: (bench.turn(), bench.known() == 0)[1], "they are let go")


def test_a_long_answer_of_a_refused_reload(poold: Poold) -> None:
    """What a refused reload says is whole also where it is longer than a socket's buffer and its reader slow."""
    daemon = poold().start()
    keys = [f"{number}{'x' * 5000}" for number in range(50)]
    daemon.config.write_text("[server]\n" + "".join(f"{key} = 1\n" for key in keys))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(daemon.control))
        client.send(b'{"verb": "reload"}\n')
        daemon.metric("poold_reloads_total", 1, result="refused")
        line = client.makefile().readline()
    assert len(line) > 250_000
    assert all(any(key in problem for problem in json.loads(line)["problems"]) for key in keys)
    told = daemon.cli("reload", "--socket", str(daemon.control))
    assert told.returncode == 1
    assert all(key in told.stderr for key in keys)
    assert daemon.metrics().total("poold_loop_errors_total") == 0


class Impostor:
    """Listens where a daemon would, and answers everybody with the same bytes."""

    def __init__(self, path: Path, *parts: bytes, fds: int = 0) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._parts, self._fds = parts, fds
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._listening, self._listening.accept()[0] as client, contextlib.suppress(OSError):
            client.recv(4096)
            for part in self._parts:
                client.sendmsg([part], rights(1, self._fds), socket.MSG_NOSIGNAL)
            # Until the client has had enough.
            client.recv(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(DEADLINE)


@pytest.mark.parametrize(
    ("parts", "fds"),
    [
        ((b"[" * 100_000 + b"\n",), 0),
        ((b"[1, 2]\n",), 0),
        ((b"null\n",), 0),
        ((b"\xff\n",), 0),
        ((b"x" * 65536,) * 40, 0),
        ((b"x",) * 40, 3),
        ((b'{"ok"',), 1),
    ],
)
def test_what_answers_is_no_daemon(tmp_path: Path, parts: tuple[bytes, ...], fds: int) -> None:
    """Whatever answers in the daemon's place, the command ends with an error in its time, and keeps no descriptor that came with it."""
    before = len(os.listdir("/proc/self/fd"))
    with Impostor(tmp_path / "s", *parts, fds=fds), pytest.raises(rpc.UnreachableError):
        rpc.call([tmp_path / "s"], {"verb": "view"}, timeout=1.0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_answer_that_trickles(tmp_path: Path) -> None:
    """The time for an answer is that of the whole answer, not of each byte."""

    class Slow(Impostor):
        def _serve(self) -> None:
            with self._listening, self._listening.accept()[0] as client, contextlib.suppress(OSError):
                pause = threading.Event()
                while True:
                    client.send(b" ", socket.MSG_NOSIGNAL)
                    pause.wait(0.05)

    with Slow(tmp_path / "s"), pytest.raises(rpc.UnreachableError):
        rpc.call([tmp_path / "s"], {"verb": "view"}, timeout=0.5)


# A socket file that has gone.


def test_a_removed_control_socket_is_made_again(poold: Poold) -> None:
    """A control socket that somebody removes is made again when a scrape finds out, which is said, and commands find it."""
    daemon = poold().start()
    before = len(open_files(daemon.master))
    daemon.control.unlink()
    assert daemon.event("control_socket_lost")["hint"] == "it was made again"
    assert daemon.ask("status")["phase"] == "running"
    assert daemon.control.stat().st_mode & 0o777 == 0o600
    eventually(lambda: len(open_files(daemon.master)) <= before, "the former one is closed")
    assert daemon.stop() == 0


def test_a_removed_control_socket_and_a_reload(poold: Poold) -> None:
    """Without metrics a removed control socket is made again by the next reload, which SIGHUP asks for; who waits is answered."""
    daemon = poold(options={"metrics.listen": ""}, settings='[[listener]]\naddress = "systemd://main"\n').start(laws=False)
    with Client(str(daemon.control)) as waiting:
        # It is in the queue of the socket that is lost.
        daemon.control.unlink()
        daemon.kill(signal.SIGHUP)
        daemon.event("control_socket_lost")
        waiting.send(VIEW)
        assert json.loads(waiting.line())["phase"] == "running"
    assert daemon.ask("status")["phase"] == "running"
    daemon.event("reload_applied")
    assert len(daemon.events("control_socket_lost")) == 1


def test_a_client_of_the_lost_socket_is_answered(poold: Poold, tmp_path: Path) -> None:
    """Who has asked for a reload hears of its result, although the socket was made anew meanwhile."""
    gate = tmp_path / "gate"
    daemon = poold(options={"server.handler": "gated:serve", "server.environment": {"GATE": str(gate)}}).start()
    os.mkfifo(gate)
    command = [sys.executable, "-m", "poold", "reload", "--socket", str(daemon.control)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=daemon.folder, text=True) as asking:
        with at_the_gate(gate):
            daemon.control.unlink()
            daemon.event("control_socket_lost")
        said, _ = asking.communicate(timeout=DEADLINE)
    assert (asking.returncode, said[:7]) == (0, "applied")


@needs_strace
def test_a_control_socket_that_cannot_be_watched(poold: Poold) -> None:
    """A control socket that was made again while the kernel had no memory to watch it with is watched as soon as there is some."""
    daemon = poold().start(laws=False)
    before = len(open_files(daemon.master))
    with traced(daemon.folder, daemon.master, "inject=epoll_ctl:error=ENOMEM"):
        daemon.control.unlink()
        daemon.metrics()
        daemon.event("control_refused")
    assert daemon.ask("status")["phase"] == "running"
    eventually(lambda: len(open_files(daemon.master)) <= before, "the former one is closed")


@pytest.mark.parametrize("instead", ["a file", "another daemon"])
def test_a_control_socket_whose_place_is_taken(poold: Poold, instead: str) -> None:
    """Where something else is in its place the control socket is not made again, which is said once; it is as soon as that has gone."""
    daemon = poold().start()
    daemon.control.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        if instead == "a file":
            # In one step, so that a scrape does not come between.
            daemon.control.with_name("file").write_text("precious")
            daemon.control.with_name("file").rename(daemon.control)
        else:
            other.bind(str(daemon.control.with_name("other")))
            other.listen()
            daemon.control.with_name("other").rename(daemon.control)
        assert "error" in daemon.event("control_socket_lost", hint="a reload or a scrape tries again")
        mark = daemon.mark()
        scrapes = daemon.metrics()["poold_master_loop_seconds_count"]
        eventually(lambda: daemon.metrics()["poold_master_loop_seconds_count"] > scrapes + 5, "more scrapes")
        assert not daemon.events("control_socket_lost", after=mark)
        daemon.control.unlink()
    daemon.event("control_socket_lost", hint="it was made again")
    assert daemon.ask("status")["phase"] == "running"
    assert daemon.metrics().total("poold_loop_errors_total") == 0


def test_a_lost_socket_while_clients_are_left_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that is made again while there was no descriptor for a client is served like any other."""
    bench.connect().close()
    accept, wants = socket.socket.accept, [OSError(24, "too many open files")]

    def refused(listening: socket.socket) -> Any:
        if wants:
            raise wants.pop()
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", refused)
    with socket.socket(socket.AF_UNIX) as early:
        early.connect(str(bench.path))
        bench.turn()
        bench.path.unlink()
        bench.control.renew()
        with bench.connect() as client:
            client.send(VIEW)
            assert json.loads(bench.answer(client))["ok"] is True
    # Past the moment at which the former one would have been served again.
    later = bench.loop.clock() + 2 * control.PAUSE
    eventually(lambda: (bench.turn(), bench.loop.clock() > later)[1], "the pause is over")


# Who may ask.


@needs_root
@pytest.mark.parametrize("verb", ["view", "reload", "upgrade", "stop", "nothing"])
def test_nobody_else_may_ask_for_anything(poold: Poold, verb: str) -> None:
    """Where the file's mode would let another user in, its credentials do not, whichever verb it asks for; nothing is read or done."""
    daemon = poold()
    daemon.let_others_in()
    daemon.start()
    daemon.control.chmod(0o666)
    probe = (
        "import os, socket, sys\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\ns = socket.socket(socket.AF_UNIX)\n"
        'try:\n    s.connect(sys.argv[1]); s.sendall(b\'{"verb": "%s"}\\n\' % sys.argv[2].encode()); print(s.recv(100))\n'
        "except OSError as error:\n    print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, str(daemon.control), verb], capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert done.stdout in ("b''\n", "ConnectionResetError\n", "BrokenPipeError\n")
    assert daemon.event("control_refused")["uid"] == 65534
    status = daemon.ask("status")
    assert (status["phase"], status["generation"]) == ("running", 1)
    assert not daemon.events("reload_started")
    assert not daemon.events("upgrade_started")


def test_descriptors_that_a_client_sends(poold: Poold) -> None:
    """Descriptors that come with a request are closed by the kernel: the master has none of them, then or later."""
    daemon = poold().start()
    files = eventually(lambda: sorted(open_files(daemon.master).values()))
    with socket.socket(socket.AF_UNIX) as client, (daemon.folder / "secret").open("w") as secret:
        client.settimeout(DEADLINE)
        client.connect(str(daemon.control))
        for _ in range(5):
            client.sendmsg([b" "], rights(secret.fileno(), 50))
        client.sendall(VIEW)
        assert json.loads(client.makefile().readline())["phase"] == "running"
        assert not [file for file in open_files(daemon.master).values() if file.endswith("secret")]
    eventually(lambda: sorted(open_files(daemon.master).values()) == files, "nothing is left open")


def test_secrets_are_not_in_answers(poold: Poold) -> None:
    """What options and variables hold is in no answer, nor in what commands print of it."""
    secret = "hunter2"
    daemon = poold(options={"server.options": {"password": secret}, "server.environment": {"TOKEN": secret}}).start()
    with daemon.connect() as client, socket.socket(socket.AF_UNIX) as asking:
        client.ask("pid")
        asking.settimeout(DEADLINE)
        asking.connect(str(daemon.control))
        asking.sendall(b'{"verb": "view", "statuses": true}\n')
        said = asking.makefile().readline()
        said += json.dumps(daemon.ask("status")) + json.dumps(daemon.ask("ps"))
        said += daemon.cli("reload", "--dry-run", "--socket", str(daemon.control)).stdout
        assert secret not in said


def test_a_status_with_control_characters(poold: Poold) -> None:
    """What a handler says of itself reaches the operator's terminal without control characters."""
    daemon = poold(options={"server.handler": "cases:serve"}).start()
    with daemon.connect() as client:
        assert client.ask("status \x1b]0;owned\x07\x9b31m\u202e") == "ok"
        shown = eventually(
            lambda: next((line for line in daemon.cli("ps", "--socket", str(daemon.control)).stdout.splitlines() if "owned" in line), ""),
            "the status",
        )
        assert shown.isprintable()

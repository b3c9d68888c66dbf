"""What poold can serve with: socketserver classes, http.server, programs; and as whom."""

import ast
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.needs import needs_root
from tests.procfs import signal_masks, status_fields
from tests.support import Client, Poold
from tests.waiting import eventually


def test_stream_request_handler(poold: Poold) -> None:
    """A StreamRequestHandler serves unchanged."""
    daemon = poold(options={"server.handler": "requests:Upper"}).start()
    with daemon.connect() as client:
        assert client.ask("shout") == "SHOUT"
        assert client.finish() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_request_handler_is_told_what_socketserver_tells(poold: Poold) -> None:
    """A BaseRequestHandler finds the client's address, the server's, and its own class."""
    daemon = poold(options={"server.handler": "requests:Address"}).start()
    with daemon.connect() as client:
        host, port = client.socket.getsockname()
        assert client.rest().decode() == f"{host} {port} {daemon.address} Address\n"


def test_http_server(poold: Poold, tmp_path: Path) -> None:
    """http.server's SimpleHTTPRequestHandler serves files, several over one connection."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "hello.txt").write_text("hello, web")
    daemon = poold(options={"server.handler": "requests:Web", "server.working_directory": str(site)}).start()
    url = "http://{}:{}".format(*daemon.address)
    with urllib.request.urlopen(f"{url}/hello.txt", timeout=30) as answer:
        assert answer.read() == b"hello, web"
    with daemon.connect() as client:
        for _ in range(2):
            client.send(b"GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.line() == "HTTP/1.1 200 OK\r"
            while client.line() != "\r":
                continue
            assert client.file.read(10) == b"hello, web"
    daemon.metric("poold_sessions_ended_total", 2, cause="ok")


def test_command_gets_the_connection_on_0_and_1(poold: Poold) -> None:
    """A program is served inetd-style: cat echoes, and half-close ends it."""
    daemon = poold(options={"server.handler": None, "server.command": ["/bin/cat"]}).start()
    with daemon.connect() as client:
        assert client.ask("through cat") == "through cat"
        [pid] = eventually(lambda: [row["pid"] for row in daemon.children("worker") if row["state"] == "serving"])
        assert os.readlink(f"/proc/{pid}/exe") == os.path.realpath("/bin/cat")
        assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
        assert signal_masks(pid) == {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0}
        daemon.metric("poold_children_active", 1)
        assert client.finish() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_command_environment(poold: Poold) -> None:
    """A program finds its client's address under the names of UCSPI, and nothing of the service manager's."""
    options = {"server.handler": None, "server.command": ["/usr/bin/env"], "server.environment": {"GREETING": "hello"}}
    daemon = poold(options=options).start(environ={"SECRET_TOKEN": "x", "LC_TIME": "C"})
    with daemon.connect() as client:
        host, port = client.socket.getsockname()
        variables = dict(line.split("=", 1) for line in client.rest().decode().splitlines())
    ucspi = {"PROTO": "TCP", "TCPREMOTEIP": host, "TCPREMOTEPORT": str(port), "TCPLOCALIP": host, "TCPLOCALPORT": str(daemon.address[1])}
    assert ucspi.items() <= variables.items()
    assert (variables["GREETING"], variables["LC_TIME"], variables["TCPCONNNUM"]) == ("hello", "C", "1")
    assert not {"SECRET_TOKEN", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} & set(variables)


def test_command_on_a_unix_socket(poold: Poold, tmp_path: Path) -> None:
    """A program on a unix socket learns its client's uid."""
    listener = f'[[listener]]\naddress = "unix://{tmp_path}/s"\n'
    daemon = poold(options={"server.handler": None, "server.command": ["/usr/bin/env"]}, settings=listener).start()
    with Client(str(tmp_path / "s")) as client:
        variables = dict(line.split("=", 1) for line in client.rest().decode().splitlines())
    assert (variables["PROTO"], variables["IPCREMOTEEUID"], variables["IPCREMOTEPID"]) == ("IPC", str(os.geteuid()), str(os.getpid()))
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


@pytest.mark.parametrize(
    ("script", "cause", "reason"),
    [("exit 75", "exit", "exit"), ("exit 127", "exit", "exit"), ("kill -9 $$", "signal", "signal"), ("kill -PIPE $$", "client_gone", None)],
)
def test_exit_of_a_command(poold: Poold, script: str, cause: str, reason: str | None) -> None:
    """A program's exit status is its own: none of its codes means anything to poold."""
    daemon = poold(options={"server.handler": None, "server.command": ["/bin/sh", "-c", script]}).start()
    with daemon.connect() as client:
        assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause=cause)
    metrics = daemon.metrics()
    assert metrics.total("poold_children_failed_total") == (1 if reason else 0)
    assert reason is None or metrics.total("poold_children_failed_total", reason=reason) == 1


def test_command_that_vanished(poold: Poold, tmp_path: Path) -> None:
    """A program that cannot be started ends its session as `exit`, once, with the errno in the log."""
    program = tmp_path / "program"
    shutil.copy("/bin/cat", program)
    daemon = poold(options={"server.handler": None, "server.command": [str(program)]}).start()
    program.unlink()
    with daemon.connect() as client:
        assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="exit")
    assert daemon.event("exec_failed")["errno"] == 2
    assert daemon.metrics().total("poold_sessions_ended_total") == 1


@needs_root
def test_user_and_groups(poold: Poold) -> None:
    """Mold, workers and exporter run as the user that the settings name, with no way back, and the master stays root."""
    options = {
        "server.handler": "whoami:serve",
        "server.user": "nobody",
        "server.groups": ["users"],
        "server.umask": "0027",
        "server.working_directory": "/tmp",
    }
    daemon = poold(options=options)
    daemon.let_others_in()
    daemon.start()
    uid, gid, users = 65534, 65534, 100
    with daemon.connect() as client:
        facts = ast.literal_eval(client.line())
    assert facts == {
        "uid": [uid] * 3,
        "gid": [gid] * 3,
        "groups": [users],
        "cwd": "/tmp",
        "umask": 0o027,
        "user": "nobody",
        "capabilities": 0,
    }
    for row in daemon.children():
        assert os.stat(f"/proc/{row['pid']}").st_uid in (uid, 0)
        assert int(status_fields(row["pid"])["Uid"].split()[0]) == uid
    assert status_fields(daemon.master)["Uid"].split()[0] == "0"


@needs_root
def test_another_user_cannot_reach_the_counters(poold: Poold) -> None:
    """A worker of another user cannot open the shared memories for writing, not even through /proc."""
    daemon = poold(options={"server.handler": "poold.handlers.echo:serve", "server.user": "nobody"})
    daemon.let_others_in()
    daemon.start()
    [exporter] = [row["pid"] for row in daemon.children("exporter")]
    probe = (
        "import os, sys\nos.setgid(65534); os.setuid(65534)\n"
        "for pid in sys.argv[1:]:\n"
        "    try: names = os.listdir(f'/proc/{pid}/fd')\n"
        "    except PermissionError: continue\n"
        "    for name in names:\n"
        "        path = f'/proc/{pid}/fd/{name}'\n"
        "        if 'memfd' in os.readlink(path):\n"
        "            try: os.open(path, os.O_RDWR); print('opened', path, os.readlink(path))\n"
        "            except PermissionError: pass\n"
    )
    command = [sys.executable, "-c", probe, str(daemon.master), str(exporter)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_echo_and_daytime(poold: Poold) -> None:
    """The simplest handlers that ship do what their RFCs say."""
    daemon = poold(options={"server.handler": "poold.handlers.echo:serve"}).start()
    with daemon.connect() as client:
        payload = os.urandom(50_000)
        client.send(payload)
        assert client.file.read(len(payload)) == payload
        assert client.finish() == b""
    other = poold(options={"server.handler": "poold.handlers.daytime:serve"}).start()
    with other.connect() as client:
        [line] = client.rest().decode().splitlines()
        assert len(line) > 10
    other.metric("poold_sessions_ended_total", 1, cause="ok")


def test_chat_between_processes(poold: Poold) -> None:
    """Two clients talk to each other through two processes, and `poold ps` shows who is where."""
    daemon = poold(options={"server.handler": "poold.handlers.chat:serve", "server.options": {}}).start()
    with daemon.connect() as anna, daemon.connect() as bert:
        anna.send(b"/nick anna\n")
        bert.send(b"/nick bert\n")
        _until(anna, "bert")
        bert.send(b"hello anna\n")
        assert "bert" in _until(anna, "hello anna")
        daemon.metric("poold_children_active", 2)
        statuses = [row["status"] for row in daemon.children("worker") if row["state"] == "serving"]
        assert any("anna" in status for status in statuses)
    daemon.metric("poold_sessions_ended_total", 2)


def _until(client: Client, text: str) -> str:
    """Read lines until one has this text."""
    while True:
        line = client.line()
        assert line or client.socket.recv(1, socket.MSG_PEEK), "the chat ended"
        if text in line:
            return line

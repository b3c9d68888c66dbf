"""The shipped units start, serve, and say how it goes."""

import json
import re
from collections.abc import Callable

import pytest

from tests.needs import needs_rings
from tests.support import Client
from tests.systemd.machine import Machine
from tests.systemd.unit import PASSED, Unit
from tests.waiting import eventually

Take = Callable[..., Unit]
Boot = Callable[..., Machine]
UNITS = ("poold", "poold-strict", "poold@pool")
# Says what becomes of one line of Python.
EVALUATE = """
import mmap, os, socket
try:
    print(eval(input()))
except OSError as error:
    print(type(error).__name__, error.strerror)
"""


def heard(client: Client, words: str) -> bool:
    """Read lines until one has these words; the client's own deadline is the test's."""
    while line := client.line():
        if words in line:
            return True
    return False


@pytest.mark.parametrize("name", UNITS)
def test_it_serves(unit: Take, name: str) -> None:
    """Each unit is up when it can serve, says so in its status, and runs children without any right, by a user who is not root."""
    pool = unit(name)
    pool.configure()
    pool.start()
    assert (pool.show("ActiveState"), pool.show("SubState")) == ("active", "running")
    assert "0/256 sessions" in pool.show("StatusText")
    with pool.connect() as client:
        facts = json.loads(client.ask("facts"))
        assert 0 not in (*facts["uid"], *facts["gid"], *facts["groups"])
        assert "\nNoNewPrivs:\t1\nSeccomp:\t2\n" in facts["status"]
        assert "\nCapEff:\t0000000000000000\n" in facts["status"]
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"} & set(facts["environ"])
        eventually(lambda: pool.show("StatusText").startswith("1/256 sessions"), "the status has the session")
    assert pool.ask("status")["pid"] == int(pool.master)
    assert pool.metrics()["process_max_fds"] >= 1024


@needs_rings
@pytest.mark.parametrize("name", UNITS)
def test_pages_are_pinned(unit: Take, name: str) -> None:
    """What the units forbid leaves the mold free to pin the pages that its workers write to."""
    pool = unit(name)
    pool.configure()
    pool.start()
    [mold] = [row["pid"] for row in pool.ask("ps") if row["kind"] == "mold"]
    text = pool.machine.run("cat", f"/proc/{mold}/status")
    assert re.search(r"VmPin:\s+[1-9]", text), f"{text}{pool.events('pages_not_prefaulted')}"


@pytest.mark.parametrize("name", UNITS)
def test_chat(unit: Take, name: str) -> None:
    """The chat works in each unit: two members hear each other, by way of files in a /tmp that is the unit's own."""
    pool = unit(name)
    pool.configure(options={"server.handler": "poold.handlers.chat:serve"})
    pool.start()
    with pool.connect() as one, pool.connect() as two:
        assert heard(one, "guest-2")
        two.send(b"good evening\n")
        assert heard(one, "good evening")
    assert not list(pool.machine.path("/tmp").glob("poold*"))


@pytest.mark.parametrize("name", UNITS)
def test_what_a_command_may(unit: Take, name: str) -> None:
    """A command is served in each unit, writes nowhere but to /tmp, and asks the kernel in vain for what no server needs."""
    pool = unit(name)
    pool.configure(options={"server.handler": None, "server.path": None, "server.command": ["/bin/cat"]})
    pool.start()
    with pool.connect() as client:
        client.send(b"over and over")
        assert client.finish() == b"over and over"
    pool.configure(options={"server.handler": None, "server.path": None, "server.command": ["/usr/bin/python3", "-c", EVALUATE]})
    pool.machine.run("systemctl", "reload", f"{name}.service")
    for expression, answer in {
        "open('/tmp/mine', 'w').name": "/tmp/mine",
        "open('/etc/mine', 'w')": "Read-only file system",
        "os.listdir('/root')": "Permission denied",
        "os.stat('/dev/mem')": "No such file",
        "os.path.exists('/proc/1')": "False",
        "socket.socket(socket.AF_PACKET)": "Address family not supported",
        "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)": "PermissionError",
        "os.chroot('/')": "PermissionError",
        "os.setuid(0)": "PermissionError",
    }.items():
        with pool.connect() as client:
            client.send(expression.encode() + b"\n")
            assert answer in client.rest().decode(), expression


def test_the_journal(unit: Take) -> None:
    """Records have poold's own priorities, and no second time in the text."""
    pool = unit()
    pool.configure(options={"log.format": "text"})
    pool.start()
    with pool.connect() as client:
        client.send(b"exit 3\n")
        client.rest()
    eventually(lambda: pool.said("child_failed"))
    priorities = dict[str, str]()
    for record in pool.journal(_TRANSPORT="stdout"):
        level, event, *_ = record["MESSAGE"].split()
        priorities[event] = f"{record['PRIORITY']} {level}"
    assert priorities["ready"] == "6 info"
    assert priorities["child_failed"] == "4 warning"


def test_bad_settings(unit: Take) -> None:
    """With bad settings the unit does not start, and the journal has every reason; once they are good it starts by itself."""
    pool = unit()
    pool.drop_in("[Service]\nRestartSec=100ms\n")
    pool.write("[pool]\nmax_children = 0\nmax_chidren = 3\n")
    assert pool.machine.try_("systemctl", "start", "poold.service").returncode == 1
    assert pool.said("max_chidren")
    assert pool.said("pool.max_children")
    eventually(lambda: int(pool.show("NRestarts")) > 5, "it is tried again and again")
    pool.configure()
    eventually(lambda: pool.show("ActiveState") == "active", "it has started")
    with pool.connect() as client:
        assert client.ask("echo here") == "here"


def test_the_first_client_starts_it(boot: Boot) -> None:
    """With the socket unit alone enabled there is no poold after the boot; the first client starts it and is served."""
    enabled = "/etc/systemd/system/sockets.target.wants/poold.socket"
    settings = f'[server]\nhandler = "poold.handlers.echo:serve"\nuser = "poold"\n{PASSED}'
    with boot({enabled: "-> ../poold.socket", "/etc/poold/poold.toml": settings}) as machine:
        pool = Unit(machine, "poold")
        assert (pool.show("ActiveState", "socket"), pool.show("ActiveState")) == ("active", "inactive")
        with pool.connect() as client:
            client.send(b"hello\n")
            assert client.line() == "hello"
        assert pool.show("ActiveState") == "active"

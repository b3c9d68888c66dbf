"""Activity pages: a session reaches its own and no other, whatever it does with it, and the master survives what it reads."""

import json
import os
import signal
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poold.master.pool.activity import NO_ACTIVITY, parse_page
from poold.pages import ACTIVITY_LAYOUT, ACTIVITY_SEALS, PAGE_SIZE, ActivityWriter
from poold.scoreboard import keep_size, shared_memory
from tests.faultkit import said
from tests.support import Client, Daemon, Poold
from tests.upgradekit import upgrade
from tests.waiting import eventually

ATTACKER = {"server.handler": "attacker:serve", "pool.min_spare": 2}


def attack(client: Client, code: str) -> Any:
    """Have a session execute this, and return what it says."""
    words = said(client, code)
    return words[0] if len(words) == 1 else words


def statuses(daemon: Daemon) -> list[str]:
    """Return what `poold ps` shows of the sessions, in order."""
    rows = sorted(daemon.children("worker"), key=lambda row: row["session"] or 0)
    return [row["status"] for row in rows if row["session"]]


CUTS = {
    "cut": "say(tried(os.ftruncate, page(), 0))",
    "made longer": "say(tried(os.ftruncate, page(), 1 << 20))",
    "allocated past its end": "say(tried(os.posix_fallocate, page(), 4096, 256 << 20))",
    "sealed against writing": "say(tried(fcntl.fcntl, page(), fcntl.F_ADD_SEALS, 0x10))",
    "written past its end": "say(tried(os.pwrite, page(), b'x', 1 << 20))",
}


@pytest.mark.parametrize("attempt", CUTS)
def test_a_page_keeps_its_size(poold: Poold, attempt: str) -> None:
    """A session can neither cut its page nor make it longer nor seal it, and the master counts its failure."""
    daemon = poold(options=ATTACKER).start()
    with daemon.connect() as client:
        assert attack(client, CUTS[attempt]) in ("PermissionError", "OSError")
        assert attack(client, "c.set_status('still here'); say(1)") == 1
        assert statuses(daemon) == ["still here"]
        client.send(json.dumps("raise SystemExit(1)").encode() + b"\n")
        assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="exit")
    with daemon.connect() as client:
        assert attack(client, "say(2)") == 2


NEIGHBOURS = {
    "mapped longer": "say(tried(mmap.mmap, page(), 2 * 4096))",
    "mapped at an offset": "say(called('mmap', None, 4096, 3, 1, page(), ctypes.c_long(4096)) or 'mapped')",
}


def test_no_neighbour_is_reached_through_a_mapping(poold: Poold) -> None:
    """Growing a mapping of the page, or laying its file out anew, gives memory that ends with the page."""
    daemon = poold(options=ATTACKER).start()
    with daemon.connect() as client, daemon.connect() as other:
        assert attack(other, "c.set_status('mine'); say(1)") == 1
        attack(client, "m = mmap.mmap(page(), 4096); at = ctypes.addressof(ctypes.c_char.from_buffer(m)); say(1)")
        # What lies beyond is no memory at all: touching it is fatal to who does.
        for size in (0, PAGE_SIZE):
            assert attack(client, f"say(fate(grow_and_touch, at, {size}))") == signal.SIGBUS
        assert attack(client, "say(fate(turn_and_touch, at))") in (0, signal.SIGBUS)
        assert statuses(daemon) == ["", "mine"]


@pytest.mark.parametrize("attempt", NEIGHBOURS)
def test_what_lies_beyond_the_page_is_not_there(poold: Poold, attempt: str) -> None:
    """A mapping beyond the end of the page is refused, or is fatal to touch."""
    daemon = poold(options=ATTACKER).start()
    with daemon.connect() as client:
        assert attack(client, NEIGHBOURS[attempt]) in ("ValueError", "mapped")
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_each_worker_has_a_file_of_its_own(poold: Poold) -> None:
    """No two workers have the same page, not one after the other either; the master has as many as there are workers."""
    daemon = poold(options=ATTACKER).start()
    seen = set()
    for _ in range(3):
        with daemon.connect() as one, daemon.connect() as two:
            seen |= {attack(client, "say(os.fstat(page()).st_ino)") for client in (one, two)}
    assert len(seen) == 6
    daemon.metric("poold_children", 2, kind="worker", state="spare")

    def pages() -> int:
        names = [os.readlink(f"/proc/{daemon.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{daemon.pid}/fd")]
        return sum("poold-activity" in name for name in names)

    # One more: the file of workers that an older version has made.
    eventually(lambda: pages() == 3, "a page for each spare")


def test_what_a_session_leaves_behind_reaches_no_other(poold: Poold) -> None:
    """A process that a session has left behind, with its page, changes nothing of the sessions after it."""
    daemon = poold(options={**ATTACKER, "pool.max_children": 1, "pool.min_spare": 1, "pool.max_spare": 1}).start()
    record = "import struct; r = struct.pack('<QdQ200sQ', 1, 0.0, 6, b'forged', {}); fd = page()"
    with daemon.connect() as client:
        fork = "\npid = os.fork()\nif not pid:\n    os.setsid(); c.socket.close()\n    while True: os.pwrite(fd, r, 0)\nsay(pid)"
        left = attack(client, record.format(2) + fork)
    try:
        with daemon.connect() as client:
            assert attack(client, "say(c.id)") == 2
            assert statuses(daemon) == [""]
            client.send(json.dumps("raise SystemExit(3)").encode() + b"\n")
            assert client.rest() == b""
        daemon.metric("poold_sessions_ended_total", 1, cause="exit")
    finally:
        os.kill(left, signal.SIGKILL)
    daemon.metric("poold_unknown_children_reaped_total", 1)


@pytest.mark.parametrize("connections", [1, 0])
def test_a_session_says_nothing_for_the_next_one(poold: Poold, connections: int) -> None:
    """Where a worker goes on, the next session has neither the status nor the broken pipe of the last one."""
    daemon = poold(options={**ATTACKER, "pool.max_children": 1, "pool.min_spare": 1, "pool.connections_per_child": connections}).start()
    with daemon.connect() as client:
        assert attack(client, "c.set_status('the first'); say(1)") == 1
        assert statuses(daemon) == ["the first"]
        client.send(json.dumps("raise SystemError").encode() + b"\n")
        client.line()
        client.send(json.dumps("class Out(BaseException): pass").encode() + b"\n" + json.dumps("c.socket.close()").encode() + b"\n")
    with daemon.connect() as client:
        assert attack(client, "say(1)") == 1
        assert statuses(daemon) == [""]
        client.send(json.dumps("os._exit(3)").encode() + b"\n")
        assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="exit")


def test_a_closed_page_is_an_error_of_the_handler_alone(poold: Poold) -> None:
    """A handler that has closed the page, and has a file of its own at the number, gets OSError, and the file stays as it was."""
    daemon = poold(options=ATTACKER).start()
    with daemon.connect() as client:
        attack(client, "n = page(); os.close(n); fd = os.memfd_create('own'); os.dup2(fd, n)")
        assert attack(client, "say(tried(c.set_status, 'lost'))") == "OSError"
        assert attack(client, "say(os.fstat(n).st_size)") == 0
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_pages_survive_an_upgrade(poold: Poold) -> None:
    """After an upgrade a session's words are still read, those before and those after, and its page goes with it."""
    daemon = poold(options=ATTACKER).start()
    with daemon.connect() as client:
        attack(client, "c.set_status('before')")
        assert upgrade(daemon).returncode == 0
        assert statuses(daemon) == ["before"]
        attack(client, "c.set_status('after')")
        assert statuses(daemon) == ["after"]
        assert attack(client, "say(tried(os.ftruncate, page(), 0))") == "PermissionError"
        client.send(json.dumps("raise SystemExit(1)").encode() + b"\n")
        assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="exit")


def test_words_on_a_page() -> None:
    """What a session says on its page is what the master reads, cut and without control characters, and of that session alone."""
    fd = shared_memory("activity", PAGE_SIZE)
    keep_size(fd)
    page = ActivityWriter(fd, 7)

    def read(session: int = 7) -> tuple[bool, float, str]:
        found = parse_page(os.pread(fd, ACTIVITY_LAYOUT.size, 0), session)
        return found.client_gone, found.deadline, found.status

    assert read() == (False, 0.0, "")
    page.note_client_gone()
    page.extend_deadline(12.5)
    page.set_status("täglich\x07 " + "x" * 500)
    assert read()[:2] == (True, 12.5)
    assert read()[2].startswith("täglich xx")
    assert read(8) == (False, 0.0, "")
    page.extend_deadline(float("nan"))
    page.set_status("short")
    assert read() == (True, 0.0, "short")
    ActivityWriter(fd, 8).set_status("next")
    assert (read(7), read(8)) == ((False, 0.0, ""), (False, 0.0, "next"))
    assert ACTIVITY_SEALS == 7
    os.close(fd)


@given(st.binary(max_size=400), st.integers(0, (1 << 64) - 1))
def test_any_bytes_on_a_page_are_understood(data: bytes, owner: int) -> None:
    """Whatever stands on a page, reading gives a bounded text without control characters and a finite deadline, or nothing."""
    found = parse_page(data, owner)
    assert found == NO_ACTIVITY or len(data) >= ACTIVITY_LAYOUT.size
    assert len(found.status) <= 200
    assert found.status.isprintable()
    assert 0 <= found.deadline < float("inf")
    signed = data[:-8] + struct.pack("<Q", owner) if len(data) == ACTIVITY_LAYOUT.size else data
    assert parse_page(signed, owner).deadline >= 0

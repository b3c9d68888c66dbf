"""What systemd does for a poold in trouble, and does not do to it."""

from collections.abc import Callable

import pytest

from tests.systemd.unit import PASSED, Unit

Take = Callable[..., Unit]


def test_a_hung_master(unit: Take) -> None:
    """A master whose loop does not turn is ended by the watchdog, with its stack in the journal, and another one serves."""
    pool = unit()
    pool.configure(listeners=PASSED)
    pool.drop_in("[Service]\nWatchdogSec=2\n")
    pool.start("socket")
    pool.start()
    pool.machine.run("systemctl", "kill", "--kill-who=main", "--signal=STOP", "poold.service")
    with pool.connect() as client:
        assert client.ask("echo at last") == "at last"
    assert pool.show("NRestarts") == "1"
    assert pool.said("Watchdog timeout")
    assert pool.said("Fatal Python error: Aborted")
    assert pool.said("loop.py")


def test_a_child_without_measure(unit: Take) -> None:
    """A child that takes all the unit's memory is ended by the kernel, alone: the master and other sessions go on."""
    pool = unit()
    pool.configure(options={"server.handler": None, "server.path": None, "server.command": ["/usr/bin/python3", "-c", "exec(input())"]})
    pool.drop_in("[Service]\nMemoryMax=250M\n")
    pool.start()
    if pool.show("MemoryCurrent") == "[not set]":
        pytest.skip("this machine's control groups have no memory controller")
    master = pool.master
    with pool.connect() as modest, pool.connect() as greedy:
        greedy.send(b"x = bytearray(1 << 30)\n")
        assert greedy.rest() == b""
        modest.send(b"print('still here')\n")
        assert modest.line() == "still here"
    assert pool.event("child_failed")["status"] == -9
    assert (pool.show("ActiveState"), pool.show("NRestarts"), pool.master) == ("active", "0", master)

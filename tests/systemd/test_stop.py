"""`systemctl stop` ends sessions as gently as the settings say."""

from collections.abc import Callable

from tests.systemd.unit import Unit
from tests.waiting import eventually

Take = Callable[..., Unit]


def seconds_left(pool: Unit) -> int:
    """Return what the status says of the drain."""
    return int(pool.show("StatusText").rpartition(", ")[2].removesuffix(" s left"))


def test_a_long_session(unit: Take) -> None:
    """A drain may last longer than TimeoutStopSec=: systemd is asked for more, and told how it goes; it ends with the last session."""
    pool = unit()
    pool.configure(options={"timeouts.drain": 600})
    pool.drop_in("[Service]\nTimeoutStopSec=2\n")
    pool.start()
    with pool.connect() as client:
        client.ask("pid")
        pool.machine.run("systemctl", "stop", "--no-block", "poold.service")
        eventually(lambda: pool.show("StatusText").startswith("draining, 1/256 sessions"))
        # poold's own clock says that more than two seconds have passed; being asked is what makes it look.
        eventually(lambda: pool.ask("status") and seconds_left(pool) < 597)
        assert pool.show("SubState") == "stop-sigterm"
        assert client.ask("echo still here") == "still here"
        client.finish()
    eventually(lambda: pool.show("ActiveState") == "inactive")
    assert pool.show("Result") == "success"


def test_a_session_that_stays(unit: Take) -> None:
    """When the drain's time is up, sessions that are left end, and the unit with them, in order."""
    pool = unit()
    pool.configure(options={"timeouts.drain": 1, "timeouts.kill": 1})
    pool.start()
    with pool.connect() as client:
        client.ask("ignore_term")
        pool.machine.run("systemctl", "stop", "poold.service")
        assert client.rest() == b""
    assert (pool.show("ActiveState"), pool.show("Result"), pool.show("ExecMainStatus")) == ("inactive", "success", "0")
    assert pool.events("session_ended")[0]["cause"] == "drained"


def test_what_a_handler_leaves(unit: Take) -> None:
    """A process that a session has left behind lives on while the unit does, and ends with it."""
    pool = unit()
    pool.configure()
    pool.start()
    with pool.connect() as client:
        left = client.ask("fork setsid")
    pool.event("session_ended")
    assert pool.machine.path(f"/proc/{left}").exists()
    pool.machine.run("systemctl", "stop", "poold.service")
    assert not pool.machine.path(f"/proc/{left}").exists()

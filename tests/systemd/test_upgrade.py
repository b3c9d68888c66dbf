"""An upgrade in place and the descriptor store: what a new program takes over from the old one, and a new master from a dead one."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.systemd.unit import Unit
from tests.upgradekit import in_the_successor
from tests.waiting import eventually

Take = Callable[..., Unit]
ROOT = Path(__file__).parent.parent.parent


def upgraded(pool: Unit) -> bool:
    """Say whether an upgrade has been applied."""
    return pool.metrics().total("poold_upgrades_total", result="applied") == 1


@pytest.mark.parametrize("name", ["poold", "poold-strict", "poold@pool"])
def test_upgrade(unit: Take, name: str) -> None:
    """An upgrade is the same process to systemd: it stays active, sessions go on, and nobody is refused."""
    pool = unit(name)
    pool.configure()
    pool.start()
    master = pool.master
    with pool.connect() as client:
        client.ask("pid")
        pool.machine.run("poold", "upgrade", "--socket", f"{pool.folder}/control.sock")
        assert client.ask("echo still here") == "still here"
        with pool.connect() as later:
            assert later.ask("echo here") == "here"
        eventually(lambda: pool.show("StatusText").startswith("1/256 sessions"), "the status is of now")
    assert (pool.master, pool.show("ActiveState"), pool.show("NRestarts")) == (master, "active", "0")
    eventually(lambda: pool.metrics().total("poold_sessions_ended_total", cause="ok") == 2, "both have ended")


def test_upgrade_by_signal(unit: Take) -> None:
    """`systemctl kill --signal=USR2` does the same, and the new program goes on telling the watchdog that it lives."""
    pool = unit()
    pool.configure()
    pool.drop_in("[Service]\nWatchdogSec=2\n")
    pool.start()
    master = pool.master
    pool.machine.run("systemctl", "kill", "--kill-who=main", "--signal=USR2", "poold.service")
    eventually(lambda: upgraded(pool), "the upgrade is applied")
    end = time.monotonic() + 5
    eventually(lambda: time.monotonic() > end)
    assert (pool.master, pool.show("ActiveState"), pool.show("NRestarts")) == (master, "active", "0")


def test_stored_listeners(unit: Take) -> None:
    """Listeners that poold opened itself outlive a killed master in systemd's store: who comes meanwhile is served by the next one."""
    pool = unit()
    pool.configure()
    pool.drop_in("[Service]\nRestartSec=3\n")
    pool.start()
    eventually(lambda: int(pool.show("NFileDescriptorStore")) >= 1, "the listener is stored")
    stored = pool.show("NFileDescriptorStore")
    pool.machine.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "poold.service")
    eventually(lambda: pool.show("SubState") == "auto-restart", "systemd knows")
    with pool.connect() as early:
        assert early.ask("echo waited") == "waited"
    assert (pool.show("NRestarts"), pool.show("NFileDescriptorStore")) == ("1", stored)


def test_a_new_program_that_dies(unit: Take) -> None:
    """When the new program dies in the master's place, sessions end, systemd starts another one, and that serves who came meanwhile."""
    pool = unit()
    code = pool.machine.path("/opt/code/poold")
    shutil.copytree(ROOT / "poold", code, ignore=shutil.ignore_patterns("__pycache__"))
    pool.configure()
    pool.drop_in("[Service]\nRestartSec=3\nEnvironment=PYTHONPATH=/opt/code\n")
    pool.start()
    master = pool.master
    eventually(lambda: int(pool.show("NFileDescriptorStore")) >= 1, "the listener is stored")
    takeover = code / "master" / "upgrade" / "takeover.py"
    takeover.write_text(takeover.read_text() + "\n\n" + in_the_successor("def restore_all(*_, **__): os._exit(3)", indent=""))
    with pool.connect() as session:
        session.ask("pid")
        assert pool.machine.try_("poold", "upgrade", "--socket", f"{pool.folder}/control.sock").returncode != 0
        assert session.rest() == b""
    eventually(lambda: pool.show("SubState") == "auto-restart", "systemd knows")
    with pool.connect() as early:
        assert early.ask("echo waited") == "waited"
    assert (pool.show("ActiveState"), pool.show("NRestarts")) == ("active", "1")
    assert pool.master != master
    shutil.rmtree(code.parent)


def test_a_listener_that_is_dropped(unit: Take) -> None:
    """A listener that the settings drop leaves the store too, so that its port is free."""
    pool = unit()
    pool.configure()
    pool.start()
    eventually(lambda: int(pool.show("NFileDescriptorStore")) >= 1, "the listener is stored")
    stored = pool.show("NFileDescriptorStore")
    pool.configure(listeners='[[listener]]\naddress = "tcp://127.0.0.1:7778"\nname = "other"\n')
    pool.machine.run("systemctl", "reload", "poold.service")
    eventually(lambda: pool.show("NFileDescriptorStore") == stored, "one for the other")
    with pytest.raises(ConnectionRefusedError):
        pool.connect()
    with pool.connect(7778) as client:
        assert client.ask("echo here") == "here"

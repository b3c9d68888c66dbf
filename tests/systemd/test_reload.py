"""`systemctl reload` waits for the result, and says no when it is no."""

from collections.abc import Callable

import pytest

from tests.systemd.unit import SHIPPED, Unit
from tests.waiting import eventually

Take = Callable[..., Unit]
UNITS = ("poold", "poold-strict", "poold@pool")


@pytest.mark.parametrize("name", UNITS)
def test_good_settings(unit: Take, name: str) -> None:
    """When `systemctl reload` returns, the new settings are in force, in the same process, and sessions have gone on."""
    pool = unit(name)
    pool.configure()
    pool.start()
    master = pool.master
    with pool.connect() as client:
        client.ask("pid")
        pool.configure(options={"pool.max_children": 7})
        assert pool.machine.try_("systemctl", "reload", f"{name}.service").returncode == 0
        status = pool.ask("status")
        assert (status["generation"], status["children_max"]) == (2, 7)
        assert client.ask("echo still here") == "still here"
    assert (pool.master, pool.show("ActiveState")) == (master, "active")


@pytest.mark.parametrize("settings", ["[pool]\nmax_children = -1\n", "[pool\n"])
def test_bad_settings(unit: Take, settings: str) -> None:
    """With bad settings `systemctl reload` fails and the journal says why; poold is up and goes on by the old ones."""
    pool = unit()
    pool.configure()
    pool.start()
    master = pool.master
    with pool.connect() as client:
        client.ask("pid")
        pool.write(settings)
        done = pool.machine.try_("systemctl", "reload", "poold.service")
        assert done.returncode == 1
        assert 'See "systemctl status poold.service"' in done.stderr
        assert "/etc/poold/poold.toml: line" in pool.machine.run("systemctl", "status", "--no-pager", "poold.service")
        assert pool.events("reload_refused")
        assert client.ask("echo still here") == "still here"
    assert (pool.master, pool.show("ActiveState")) == (master, "active")
    assert pool.metrics()["poold_config_last_reload_successful"] == 0


def test_systemd_follows_a_signal(unit: Take) -> None:
    """A reload by SIGHUP is one to systemd as well: the unit is reloading, then active again."""
    pool = unit()
    pool.configure()
    pool.start()
    changed = pool.show("StateChangeTimestampMonotonic")
    pool.machine.run("systemctl", "kill", "--kill-who=main", "--signal=HUP", "poold.service")
    pool.event("reload_applied")
    eventually(lambda: pool.show("SubState") == "running" and pool.show("StateChangeTimestampMonotonic") != changed)


def test_notify_reload(unit: Take) -> None:
    """With the drop-in for newer systemds, `systemctl reload` is a signal, and waits all the same."""
    pool = unit()
    version = int(pool.machine.run("systemctl", "--version").split()[1])
    if version < 253:
        pytest.skip(f"systemd {version} is older than Type=notify-reload, which came with 253")
    pool.drop_in((SHIPPED / "drop-ins" / "notify-reload.conf").read_text())
    pool.configure()
    pool.start()
    pool.configure(options={"pool.max_children": 7})
    pool.machine.run("systemctl", "reload", "poold.service")
    assert pool.ask("status")["children_max"] == 7

"""Several pools on one machine."""

from collections.abc import Callable

from tests.support import Client
from tests.systemd.unit import LISTENER, PASSED, Unit

Take = Callable[..., Unit]


def test_pools_leave_each_other_alone(unit: Take) -> None:
    """Pools have their own settings, folders and users' sockets; when one stops, poold.service included, the others can still be asked."""
    for number, name in enumerate(("poold", "poold@one", "poold@two")):
        pool = unit(name)
        pool.configure(
            listeners=LISTENER.format(address=f"tcp://127.0.0.1:{7001 + number}"),
            options={"metrics.listen": "", "pool.max_children": 11 + number},
        )
        pool.start()
    one, two = unit("poold@one"), unit("poold@two")
    for name in ("poold", "poold@two"):
        one.machine.run("systemctl", "stop", f"{name}.service")
    assert one.ask("status")["children_max"] == 12
    one.machine.run("systemctl", "reload", "poold@one.service")
    with one.connect(7002) as client:
        assert client.ask("echo here") == "here"
    assert not two.machine.path("/run/poold/two").exists()


def test_a_pools_own_socket(unit: Take) -> None:
    """The socket unit of a pool is a unix socket of its name, that outlives the pool."""
    pool = unit("poold@one")
    pool.configure(listeners=PASSED)
    pool.start("socket")
    for _ in range(2):
        with Client(str(pool.machine.path("/run/poold-one.sock"))) as client:
            assert client.ask("echo here") == "here"
        pool.machine.run("systemctl", "stop", "poold@one.service")

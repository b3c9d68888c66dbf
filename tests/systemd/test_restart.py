"""What clients notice of a restart and of a crash, with systemd holding the socket."""

import threading
from collections.abc import Callable

from tests.systemd.unit import PASSED, Unit
from tests.waiting import eventually

Take = Callable[..., Unit]


def test_restart_under_load(unit: Take) -> None:
    """Over two restarts under load every client is let in and served to its end, by one master or the next."""
    pool = unit()
    pool.configure(listeners=PASSED, options={"timeouts.drain": 20})
    pool.start("socket")
    pool.start()
    masters = [pool.master]
    stop = threading.Event()
    served: list[str] = []
    wrong: list[str] = []

    def load() -> None:
        while not stop.is_set():
            try:
                with pool.connect() as client:
                    answer = client.ask("echo here")
                (served if answer == "here" else wrong).append(answer)
            except OSError as error:
                wrong.append(str(error))
            stop.wait(0.01)

    loaders = [threading.Thread(target=load) for _ in range(2)]
    for loader in loaders:
        loader.start()
    try:
        for _ in range(2):
            served.clear()
            eventually(lambda: len(served) > 10, "clients are served")
            pool.machine.run("systemctl", "restart", "poold.service")
            masters.append(pool.master)
    finally:
        stop.set()
        for loader in loaders:
            loader.join()
    assert not wrong
    assert len(set(masters)) == 3


def test_a_killed_master(unit: Take) -> None:
    """When the master is killed, its sessions end, systemd starts another one, and who came meanwhile is served by it."""
    pool = unit()
    pool.configure(listeners=PASSED)
    pool.drop_in("[Service]\nRestartSec=3\n")
    pool.start("socket")
    pool.start()
    master = pool.master
    with pool.connect() as session:
        session.ask("pid")
        pool.machine.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "poold.service")
        assert session.rest() == b""
    eventually(lambda: pool.show("SubState") == "auto-restart", "systemd knows")
    with pool.connect() as early:
        assert early.ask("echo waited") == "waited"
    assert pool.master != master
    assert pool.show("NRestarts") == "1"

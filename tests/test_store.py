"""The service manager's store of descriptors: what is put there, what is taken out, and what the next master makes of it."""

import os
import re
import signal
import socket
from pathlib import Path

import pytest

from poold.address import Address
from poold.master.clients.store import PREFIX, store_name
from poold.settings import judge
from poold.settings.config import Listener
from tests.procfs import open_files
from tests.support import Client, Daemon, Poold, free_port

MAIN = '[[listener]]\naddress = "systemd://main"\nname = "main"\n'


def listeners(*addresses: str) -> str:
    """Return settings for these addresses and the passed one."""
    return "".join(f'[[listener]]\naddress = "{address}"\n' for address in addresses) + MAIN


def setting(address: str) -> Listener:
    """Return a listener as settings have it."""
    return judge.load(listeners(address).encode(), None).listeners[0]


def told(daemon: Daemon, key: str) -> list[str]:
    """Return the names that the service manager was told to keep (FDSTORE) or not to keep any more (FDSTOREREMOVE)."""
    return [message["FDNAME"] for message in daemon.notify.poll() if key in message]


def test_own_listeners_are_kept(poold: Poold, tmp_path: Path) -> None:
    """TCP and unix listeners are put into the store, passed ones are there already; what a reload or a stop closes is taken out."""
    first, second, path = free_port(), free_port(), tmp_path / "u.sock"
    daemon = poold(settings=listeners(f"tcp://127.0.0.1:{first}", f"unix://{path}")).start()
    kept = told(daemon, "FDSTORE")
    assert len(set(kept)) == 2
    assert kept[0] == store_name(setting(f"tcp://127.0.0.1:{first}"), None)
    daemon.write(options={}, settings=listeners(f"tcp://127.0.0.1:{second}", f"unix://{path}"))
    assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
    added = store_name(setting(f"tcp://127.0.0.1:{second}"), None)
    assert set(told(daemon, "FDSTORE")) == {*kept, added}
    daemon.event("listener_closed")
    assert told(daemon, "FDSTOREREMOVE") == [kept[0]]
    assert daemon.stop() == 0
    assert set(told(daemon, "FDSTOREREMOVE")) == {*kept, added}


def test_kept_listeners_are_used(poold: Poold, tmp_path: Path) -> None:
    """A master that gets its listeners back from the store goes on with them: who came meanwhile is served."""
    path = tmp_path / "u.sock"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.create_server(("127.0.0.1", 0)) as odd,
    ):
        unix.bind(str(path))
        unix.listen()
        status = path.stat()
        port = tcp.getsockname()[1]
        daemon = poold(settings=listeners(f"tcp://127.0.0.1:{port}", f"unix://{path}"))
        daemon.passed |= {
            store_name(setting(f"tcp://127.0.0.1:{port}"), None): tcp,
            store_name(setting(f"unix://{path}"), (status.st_dev, status.st_ino)): unix,
            f"{PREFIX}of-other-settings": odd,
        }
        with Client(("127.0.0.1", port)) as early, Client(str(path)) as other:
            daemon.start()
            assert early.ask("echo waited") == "waited"
            assert other.ask("echo waited") == "waited"
        inodes = [f"socket:[{os.fstat(each.fileno()).st_ino}]" for each in (tcp, unix, odd)]
        assert [inode in open_files(daemon.master).values() for inode in inodes] == [True, True, False]
        assert told(daemon, "FDSTOREREMOVE") == [f"{PREFIX}of-other-settings"]
        daemon.event("stored_socket_unused")
        assert daemon.stop() == 0
    assert not path.exists()


def test_a_kept_socket_whose_file_has_gone(poold: Poold, tmp_path: Path) -> None:
    """A unix listener that nobody can find any more is closed and made anew."""
    path = tmp_path / "u.sock"
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        status = path.stat()
        path.unlink()
        daemon = poold(settings=listeners(f"unix://{path}"))
        daemon.passed[store_name(setting(f"unix://{path}"), (status.st_dev, status.st_ino))] = unix
        daemon.start()
        with Client(str(path)) as client:
            assert client.ask("echo new") == "new"


def test_after_an_upgrade(poold: Poold) -> None:
    """The store is still right after an upgrade."""
    port = free_port()
    daemon = poold(settings=listeners(f"tcp://127.0.0.1:{port}")).start()
    daemon.kill(signal.SIGUSR2)
    daemon.event("upgrade_applied")
    assert set(told(daemon, "FDSTORE")) == {store_name(setting(f"tcp://127.0.0.1:{port}"), None)}
    assert told(daemon, "FDSTOREREMOVE") == []


@pytest.mark.parametrize("keys", ["freebind = true\n", 'interface = "lo"\n', ""], ids=["freebind", "interface", "plain"])
def test_a_listener_that_leaves_during_an_upgrade(poold: Poold, keys: str) -> None:
    """A removed listener whose queue is still being emptied when an upgrade comes is taken out of the store once nobody is queued."""
    if "interface" in keys and os.geteuid() != 0:
        pytest.skip("only root binds to an interface")
    port, staying = free_port(), f'[[listener]]\naddress = "tcp://127.0.0.1:{free_port()}"\n'
    # Those of the other are the opposite of what the one that leaves has.
    leaving = f'[[listener]]\naddress = "tcp://127.0.0.1:{port}"\nname = "leaving"\n{keys}'
    staying += "" if keys else "freebind = true\n"
    options = {"pool.max_children": 1, "pool.min_spare": 0, "pool.max_spare": 0}
    daemon = poold(options=options, settings=staying + leaving + MAIN).start()
    kept = told(daemon, "FDSTORE")
    assert len(kept) == 2
    with daemon.connect() as holder, Client(("127.0.0.1", port)) as queued:
        holder.ask("pid")
        daemon.write(options=options, settings=staying + MAIN)
        assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
        assert daemon.cli("upgrade", "--socket", str(daemon.control)).returncode == 0
        assert told(daemon, "FDSTOREREMOVE") == []
        assert set(told(daemon, "FDSTORE")) == set(kept)
        holder.finish()
        assert queued.ask("echo served") == "served"
        daemon.event("listener_closed", listener="leaving")
    assert told(daemon, "FDSTOREREMOVE") == [kept[1]]
    assert daemon.stop() == 0
    assert set(told(daemon, "FDSTOREREMOVE")) == set(kept)


@pytest.mark.parametrize("address", ["tcp://[::1]:7777", "tcp://127.0.0.1:0", f"unix:///{'a' * 100}", "unix:///tmp/ü"])
def test_names_are_good_ones(address: str) -> None:
    """A name is one that sd_notify(3) takes."""
    assert re.fullmatch(r"[!-9;-~]{1,255}", store_name(setting(address), (1, 2)))
    assert str(Address.parse(address)) == address

"""No path is followed twice: who may write to the folder of a socket file puts something else there while poold is at work.

The attacks are made as they would be in life: the folder belongs to the user that handlers run as, and what is put in the place of the
socket is a private file of root's, or a way to one.
"""

import contextlib
import json
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faultkit import Poold, needs_root, needs_strace
from tests.support import Client, Daemon, eventually

pytestmark = needs_root

NOBODY = 65534
OWN = '[[listener]]\naddress = "tcp://127.0.0.1:0"\nname = "other"\n'


class Scene(NamedTuple):
    """A folder of another user's, the socket's place in it, and a private file of root's elsewhere."""

    folder: Path
    path: Path
    private: Path

    def listener(self, **keys: object) -> str:
        """Return the settings of a listener that opens its socket to everybody and gives it to the folder's owner."""
        lines = {"address": f"unix://{self.path}", "name": "app", "mode": "0666", "owner": "nobody", "group": "nogroup", **keys}
        return "[[listener]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """The scene, and afterwards: root's file is as it was."""
    folder = tmp_path / "app"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    private = tmp_path / "private"
    private.write_text("precious")
    private.chmod(0o600)
    before = private.stat()
    yield Scene(folder, folder / "app.sock", private)
    after = private.stat()
    assert private.read_text() == "precious"
    assert (after.st_mode, after.st_uid, after.st_gid, after.st_ino) == (before.st_mode, before.st_uid, before.st_gid, before.st_ino)


def link(scene: Scene) -> None:
    """Put a symbolic link there."""
    scene.path.unlink(missing_ok=True)
    scene.path.symlink_to(scene.private)


def hard_link(scene: Scene) -> None:
    """Put the file itself there: a user can, where links are not protected (proc_sys_fs(5)) or root's file lies in his own folder."""
    scene.path.unlink(missing_ok=True)
    scene.path.hardlink_to(scene.private)


def folder(scene: Scene) -> None:
    """Put a way to another folder in the place of the folder; what has the socket's name there is root's file."""
    scene.folder.rename(scene.folder.with_name("moved"))
    other = scene.folder.with_name("other")
    other.mkdir()
    (other / scene.path.name).hardlink_to(scene.private)
    scene.folder.symlink_to(other)


attacks = pytest.mark.parametrize("attack", [link, hard_link, folder])
Attack = Callable[[Scene], None]


@contextlib.contextmanager
def at_the_gate(gate: Path) -> Iterator[None]:
    """Keep the handler's import waiting meanwhile, from when it has come there."""

    def arrived() -> int:
        try:
            return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            # Nobody reads.
            return 0

    fd = eventually(arrived, "an import at the gate")
    gate.unlink()
    try:
        yield
    finally:
        os.close(fd)


def gated(poold: Poold, scene: Scene) -> tuple[Daemon, Path, dict[str, object]]:
    """Start a daemon whose handler's next import waits at the gate; return it, the gate and its options."""
    gate = scene.folder.with_name("gate")
    options: dict[str, object] = {"server.handler": "gated:serve", "server.environment": {"GATE": str(gate)}, "pool.min_spare": 1}
    daemon = poold(options=options, settings=scene.listener() + OWN).start()
    status = scene.path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o666, NOBODY, NOBODY)
    os.mkfifo(gate)
    return daemon, gate, options


def serves(daemon: Daemon) -> None:
    """Somebody is served by the listener that nobody has meddled with."""
    address = daemon.events("listening", listener="other")[-1]["address"].removeprefix("tcp://").rpartition(":")
    with Client((address[0], int(address[2]))) as client:
        assert client.ask("echo on") == "on"
    assert daemon.metrics().total("poold_loop_errors_total") == 0


@attacks
def test_a_reload_changes_nothing_but_its_own_file(poold: Poold, scene: Scene, attack: Attack) -> None:
    """A reload that changes only the backlog, while the socket is replaced by a way to root's file, leaves that alone and says so."""
    daemon, gate, options = gated(poold, scene)
    daemon.write(options=options, settings=scene.listener(backlog=99) + OWN)
    daemon.kill(signal.SIGHUP)
    with at_the_gate(gate):
        attack(scene)
    daemon.event("reload_applied")
    assert daemon.event("listener_not_changed")["listener"] == "app"
    serves(daemon)
    assert daemon.stop() == 0


@attacks
def test_an_upgrade_changes_nothing_but_its_own_file(poold: Poold, scene: Scene, attack: Attack) -> None:
    """An upgrade without a change, with the socket replaced between its trial and the exec, leaves root's file alone and says so."""
    daemon, gate, _ = gated(poold, scene)
    daemon.kill(signal.SIGUSR2)
    with at_the_gate(gate):
        attack(scene)
    daemon.event("upgrade_applied")
    assert daemon.event("listener_not_changed")["listener"] == "app"
    serves(daemon)
    assert daemon.stop() == 0


@needs_strace
@attacks
def test_a_start_changes_nothing_but_its_own_file(poold: Poold, scene: Scene, attack: Attack) -> None:
    """A socket that is replaced right after its bind, before it has its owner and mode, is lost, which is said; root's file is not touched."""
    daemon = poold(options={"pool.min_spare": 1}, settings=scene.listener() + OWN)
    tracer = (shutil.which("strace") or "", "-f", "-o", "/dev/null", "-e", "trace=bind", "-e", "inject=bind:delay_exit=1000000:when=1")
    daemon.start(wrapper=tracer, wait=False)
    eventually(lambda: scene.path.is_socket(), "the bind")
    attack(scene)
    daemon.ready()
    assert daemon.event("socket_file_lost")["listener"] == "app"
    serves(daemon)
    assert daemon.stop() == 0

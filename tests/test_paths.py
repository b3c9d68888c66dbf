"""No path is followed twice: who may write to the folder of a socket file puts something else there while poold is at work.

The attacks are made as they would be in life: the folder belongs to the user that handlers run as, and what is put in the place of the
socket is a private file of root's, or a way to one.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from poold.master.clients import socketfile
from poold.master.clients.sockdiag import unix_file
from poold.master.clients.socketfile import NOWHERE, Rights, make
from poold.master.clients.sockets import Opened, open_unix
from tests.faultkit import at_the_gate
from tests.needs import needs_root, needs_strace
from tests.support import Client, Daemon, Poold
from tests.waiting import DEADLINE, eventually

pytestmark = needs_root

NOBODY = 65534


class Scene(NamedTuple):
    """A folder of another user's, the socket's place in it, and a private file of root's elsewhere."""

    folder: Path
    path: Path
    private: Path

    @property
    def other(self) -> str:
        """Return the settings of a listener that nobody meddles with."""
        return f'[[listener]]\naddress = "unix://{self.folder.with_name("other.sock")}"\nname = "other"\n'

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


def gated(poold: Poold, scene: Scene) -> tuple[Daemon, Path, dict[str, object]]:
    """Start a daemon whose handler's next import waits at the gate; return it, the gate and its options."""
    gate = scene.folder.with_name("gate")
    options: dict[str, object] = {"server.handler": "gated:serve", "server.environment": {"GATE": str(gate)}, "pool.min_spare": 1}
    daemon = poold(options=options, settings=scene.listener() + scene.other).start()
    status = scene.path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o666, NOBODY, NOBODY)
    os.mkfifo(gate)
    return daemon, gate, options


def serves(daemon: Daemon, scene: Scene) -> None:
    """Somebody is served by the listener that nobody has meddled with."""
    with Client(str(scene.folder.with_name("other.sock"))) as client:
        assert client.ask("echo on") == "on"
    assert daemon.metrics().total("poold_loop_errors_total") == 0


@attacks
def test_a_reload_changes_nothing_but_its_own_file(poold: Poold, scene: Scene, attack: Attack) -> None:
    """A reload that changes only the backlog, while the socket is replaced by a way to root's file, leaves that alone and says so."""
    daemon, gate, options = gated(poold, scene)
    daemon.write(options=options, settings=scene.listener(backlog=99) + scene.other)
    daemon.kill(signal.SIGHUP)
    with at_the_gate(gate):
        attack(scene)
    daemon.event("reload_applied")
    assert daemon.event("listener_not_changed")["listener"] == "app"
    serves(daemon, scene)
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
    serves(daemon, scene)
    assert daemon.stop() == 0


@needs_strace
@attacks
def test_a_start_changes_nothing_but_its_own_file(poold: Poold, scene: Scene, attack: Attack) -> None:
    """A socket that is replaced right after its bind, before it has its rights, is lost, which is said; root's file is not touched."""
    daemon = poold(options={"pool.min_spare": 1}, settings=scene.listener() + scene.other)
    tracer = (shutil.which("strace") or "", "-f", "-o", "/dev/null", "-e", "trace=bind", "-e", "inject=bind:delay_exit=1000000:when=1")
    daemon.start(wrapper=tracer, wait=False)
    eventually(scene.path.is_socket, "the bind")
    attack(scene)
    daemon.ready()
    assert daemon.event("socket_file_lost")["listener"] == "app"
    serves(daemon, scene)
    assert daemon.stop() == 0


# The making of a file, step by step, with whoever is quicker between any two steps.


class Raced(socket.socket):
    """A socket that somebody else is quicker than: what he does is done right after its bind."""

    meanwhile: Callable[[], object]

    def bind(self, address: Any) -> None:
        super().bind(address)
        self.meanwhile()


@pytest.fixture(params=["by the kernel's word", "without it"])
def known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a file is known: by its number in sock_diag(7), or by what it looks like, where that may not be asked."""
    if request.param == "without it":
        monkeypatch.setattr(socketfile, "unix_file", lambda bound: None)


def bound(path: Path, mode: int, owner: int = 0) -> socket.socket:
    """Return a socket that is bound to a file of this mode and owner."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    path.chmod(mode)
    os.chown(path, owner, owner)
    return made


def other_socket(scene: Scene) -> None:
    """Put another service's private socket there, as who may rename what is in his own folder can."""
    scene.path.unlink()
    scene.private.with_name("service.sock").rename(scene.path)


def own_socket(scene: Scene) -> None:
    """Put a socket of the folder's owner there."""
    scene.path.unlink()
    bound(scene.path, 0o700, NOBODY).close()


def nothing(scene: Scene) -> None:
    """Take it away."""
    scene.path.unlink()


@pytest.mark.parametrize("attack", [link, hard_link, folder, other_socket, own_socket, nothing])
@pytest.mark.usefixtures("known")
def test_what_is_not_the_sockets_own_gets_no_rights(scene: Scene, attack: Attack) -> None:
    """Whatever has taken the place of a socket's file right after its bind keeps its owner and mode, and the socket has no file."""
    with Raced(socket.AF_UNIX) as made, bound(scene.private.with_name("service.sock"), 0o600) as service:
        made.meanwhile = lambda: attack(scene)
        assert make(made, str(scene.path), Rights(0o666, NOBODY, NOBODY), patience=0) == NOWHERE
        if attack is not nothing:
            found = scene.path.stat()
            assert stat.S_IMODE(found.st_mode) in (0o600, 0o700)
            assert (found.st_uid == NOBODY) == (attack is own_socket)
        assert not socketfile.file_in_place(str(scene.path), NOWHERE)
        assert unix_file(service) is not None


@pytest.mark.parametrize("attack", [link, hard_link, folder, other_socket, own_socket, nothing])
@pytest.mark.usefixtures("known")
def test_what_is_not_the_sockets_own_is_not_changed(scene: Scene, attack: Attack) -> None:
    """Whatever has taken the place of an open socket's file is neither given other rights nor removed."""
    with socket.socket(socket.AF_UNIX) as made, bound(scene.private.with_name("service.sock"), 0o600):
        file = make(made, str(scene.path), Rights(0o660), patience=0)
        socketfile.change(str(scene.path), file, Rights(0o600), made)
        assert stat.S_IMODE(scene.path.stat().st_mode) == 0o600
        attack(scene)
        with pytest.raises(FileNotFoundError, match="removed or replaced"):
            socketfile.change(str(scene.path), file, Rights(0o666, NOBODY, NOBODY), made)
        socketfile.remove(str(scene.path), file)
        assert scene.path.exists() == (attack is not nothing)
        if attack is not nothing:
            assert stat.S_IMODE(scene.path.stat().st_mode) in (0o600, 0o700)


RACER = """
import os, stat, sys
path, private = sys.argv[1:]
print("ready", flush=True)
while True:
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.symlink(private, path + ".link")
            os.rename(path + ".link", path)
    except OSError:
        pass
"""


@pytest.mark.usefixtures("known")
def test_a_racer_at_the_start(scene: Scene) -> None:
    """Who replaces a socket's file by a link as soon as he sees one, hundreds of times, gets no rights of root's file."""
    command = [sys.executable, "-c", RACER, str(scene.path), str(scene.private)]
    outcomes = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as racer:
        assert racer.stdout is not None
        assert racer.stdout.readline() == b"ready\n"
        try:
            for _ in range(300):
                with socket.socket(socket.AF_UNIX) as made:
                    file = make(made, str(scene.path), Rights(0o666, NOBODY, NOBODY), patience=0)
                    outcomes.append(file != NOWHERE)
                assert scene.private.stat().st_uid == 0
                eventually(scene.path.is_symlink, "the racer's turn")
                scene.path.unlink()
        finally:
            racer.kill()
    assert len(outcomes) == 300


ORDER = """
import socket, sys
from poold.master.clients import sockets, socketfile
from poold.master.clients.socketfile import Rights
opened = sockets.open_unix(sys.argv[1], Rights(0o660, 65534, 65534), backlog=5)
socketfile.change(opened.path, opened.file, Rights(0o660, 65534, 65534), opened.socket)
socketfile.change(opened.path, opened.file, Rights(0o606, 1, 1), opened.socket)
opened.close()
"""


@needs_strace
def test_nobody_gets_in_by_the_rights_of_a_moment(tmp_path: Path) -> None:
    """A file has no rights before it has its owner, and listens last; where both change, what either lacks is taken away first."""
    calls = "trace=bind,listen,fchmod,chmod,fchmodat,chown,lchown,fchown,fchownat,unlink,unlinkat,close"
    command = ["strace", "-qq", "-e", calls, "-o", str(tmp_path / "trace"), sys.executable, "-c", ORDER, str(tmp_path / "app.sock")]
    subprocess.run(command, check=True, timeout=120)
    steps = [line.replace(" ", "") for line in (tmp_path / "trace").read_text().splitlines()]
    first = next(number for number, line in enumerate(steps) if line.startswith("bind(")) - 1
    number = steps[first].partition("(")[2].partition(",")[0]
    own = [
        line for line in steps[first:] if "/proc/self/fd/" in line or line.startswith((f"close({number})", f"listen({number},", "unlink"))
    ]
    held = r'"/proc/self/fd/\d+"'
    expected = [
        r'unlinkat\(\d+,"\.app\.sock\.lock",0\)=0',
        rf"chmod\({held},0660\)=0",
        rf"chown\({held},65534,65534\)=0",
        rf"listen\({number},5\)=0",
        rf"chmod\({held},0600\)=0",
        rf"chown\({held},1,1\)=0",
        rf"chmod\({held},0606\)=0",
        # While it is open: what is closed another start may replace, and that one's file is not to be removed.
        r'unlinkat\(\d+,"app.sock",0\)=0',
        rf"close\({number}\)=0",
    ]
    assert re.fullmatch(rf"fchmod\({number},000\)=0", steps[first])
    assert len(own) == len(expected), own
    for line, pattern in zip(own, expected, strict=True):
        assert re.fullmatch(pattern, line), own


def test_a_start_that_fails_leaves_no_file(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be given to its owner is removed again."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "not allowed")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(PermissionError):
        open_unix(str(scene.path), Rights(0o660, NOBODY, NOBODY), backlog=5)
    assert list(scene.folder.iterdir()) == []


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs setfacl(1)")
def test_mode_in_a_folder_with_defaults_of_its_own(scene: Scene) -> None:
    """A folder's default access list takes nothing away from the mode that is asked for."""
    subprocess.run(["setfacl", "-d", "-m", "u::rwx,g::r-x,o::---", str(scene.folder)], check=True)
    opened = open_unix(str(scene.path), Rights(0o662), backlog=5)
    assert stat.S_IMODE(scene.path.stat().st_mode) == 0o662
    opened.close()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
def test_a_folder_whose_device_has_two_numbers(poold: Poold, scene: Scene) -> None:
    """On a file system of layers, where stat(2) and the kernel's sockets tell different devices, a socket file gets its rights too."""
    lower, disk = scene.folder.with_name("lower"), scene.folder
    lower.mkdir()
    mounts = (
        f"mount -t tmpfs none {disk} && mkdir {disk}/up {disk}/work {disk}/low && chown nobody {disk}/up && "
        f"mount -t overlay none -o lowerdir={lower},upperdir={disk}/up,workdir={disk}/work {disk}/low"
    )
    place = scene.folder / "low" / "app.sock"
    daemon = poold(settings=scene.listener(address=f"unix://{place}") + scene.other, options={"pool.min_spare": 1})
    daemon.start(wrapper=("unshare", "-m", "sh", "-c", f'({mounts}) >&2 && exec "$@"', "sh"))
    status = Path(f"/proc/{daemon.master}/root{place}").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o666, NOBODY)
    daemon.write(settings=scene.listener(address=f"unix://{place}", mode="0600") + scene.other, options={"pool.min_spare": 1})
    assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
    assert stat.S_IMODE(Path(f"/proc/{daemon.master}/root{place}").stat().st_mode) == 0o600
    assert not daemon.events("listener_not_changed")


# Neighbours.


def stale(path: Path) -> None:
    """Leave a socket file behind, as a killed daemon does."""
    bound(path, 0o600).close()


def test_a_neighbour_that_locks_the_folder(poold: Poold, scene: Scene) -> None:
    """A start does not wait for whoever has locked the folder of a socket, which anybody can who may list it."""
    stale(scene.path)
    daemon = poold(settings=scene.listener() + scene.other)
    fd = os.open(scene.folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        daemon.start()
    finally:
        os.close(fd)
    with Client(str(scene.path)) as client:
        assert client.ask("echo here") == "here"
    assert os.listdir(scene.folder) == ["app.sock"]


def foreign(lock: Path, _: Path) -> None:
    lock.touch(0o600)
    os.chown(lock, NOBODY, NOBODY)


@pytest.mark.parametrize(
    "plant",
    [
        foreign,
        lambda lock, _: (lock.touch(), lock.chmod(0o644)),
        lambda lock, private: lock.symlink_to(private),
        lambda lock, private: lock.hardlink_to(private),
        lambda lock, _: os.mkfifo(lock, 0o600),
        lambda lock, _: lock.mkdir(),
    ],
)
def test_a_lock_that_somebody_has_laid(scene: Scene, plant: Callable[[Path, Path], object]) -> None:
    """A lock that is not poold's own, a link to root's file among them, is neither waited for nor touched, and is named."""
    lock = scene.path.with_name(".app.sock.lock")
    stale(scene.path)
    plant(lock, scene.private)
    before = lock.lstat()
    with pytest.raises(OSError, match=r"\.app\.sock\.lock beside it"):
        open_unix(str(scene.path), Rights(0o666), backlog=5, patience=600)
    assert (lock.lstat().st_ino, lock.lstat().st_mode) == (before.st_ino, before.st_mode)


def test_a_lock_that_a_killed_start_has_left(scene: Scene) -> None:
    """What a start that was killed in the middle has left is used and removed by the next one."""
    scene.path.with_name(".app.sock.lock").touch(0o600)
    stale(scene.path)
    opened = open_unix(str(scene.path), Rights(0o666), backlog=5)
    assert os.listdir(scene.folder) == ["app.sock"]
    opened.close()
    assert os.listdir(scene.folder) == []


def test_another_start_is_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another poold that replaces the same file is waited for as long as is said, and no longer."""
    lock = scene.path.with_name(".app.sock.lock")
    stale(scene.path)
    fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
        open_unix(str(scene.path), Rights(0o666), backlog=5)
    opened: list[Opened] = []
    tries: list[int] = []
    try_lock = socketfile._try_lock
    monkeypatch.setattr(socketfile, "_try_lock", lambda *arguments: (tries.append(1), try_lock(*arguments))[1])
    waiting = threading.Thread(target=lambda: opened.append(open_unix(str(scene.path), Rights(0o666), backlog=5, patience=DEADLINE)))
    waiting.start()
    eventually(lambda: len(tries) > 2, "it waits")
    os.close(fd)
    waiting.join(DEADLINE)
    assert os.listdir(scene.folder) == ["app.sock"]
    opened[0].close()


def test_a_start_that_replaces_a_file_keeps_others_out(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at a stale file and its removal no other start gets in, whose file would be removed instead."""
    stale(scene.path)
    is_bound, others = socketfile._is_bound, []

    def looked(fd: int) -> bool:
        found = is_bound(fd)
        monkeypatch.setattr(socketfile, "_is_bound", is_bound)
        with pytest.raises(BlockingIOError) as caught:
            open_unix(str(scene.path), Rights(0o666), backlog=5)
        others.append(caught.value)
        return found

    monkeypatch.setattr(socketfile, "_is_bound", looked)
    opened = open_unix(str(scene.path), Rights(0o666), backlog=5)
    assert len(others) == 1
    assert opened.reachable()
    opened.close()


def test_a_socket_that_does_not_listen_yet_is_not_stale(scene: Scene) -> None:
    """A socket that is bound and about to listen belongs to a start that is under way."""
    with bound(scene.path, 0o600), pytest.raises(OSError, match="another process listens there"):
        open_unix(str(scene.path), Rights(0o666), backlog=5)
    assert scene.path.is_socket()


CONTENDER = """
import random, sys
from poold.master.clients import sockets
from poold.master.clients.socketfile import Rights
path, seed = sys.argv[1:]
chance = random.Random(int(seed))
print("ready", flush=True)
sys.stdin.readline()
won = 0
for _ in range(400):
    try:
        opened = sockets.open_unix(path, Rights(0o600), backlog=5, patience=60)
    except OSError as error:
        assert error.strerror == "another process listens there", error
        continue
    won += 1
    for _ in range(10):
        assert opened.reachable(), "somebody has taken it away"
    if chance.random() < 0.5:
        opened.close()
    else:
        # As one that is killed.
        opened.socket.close()
print(won, flush=True)
"""


def test_exactly_one_of_many_starts_has_the_file(scene: Scene) -> None:
    """Of starts at the same moment, beside ends in order and deaths, one at a time has the socket file, and keeps it to its own end."""
    commands = [[sys.executable, "-c", CONTENDER, str(scene.path), str(seed)] for seed in range(4)]
    contenders = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for command in commands]
    for contender in contenders:
        assert contender.stdout is not None
        assert contender.stdout.readline() == b"ready\n"
    for contender in contenders:
        assert contender.stdin is not None
        contender.stdin.write(b"\n")
        contender.stdin.flush()
    told = [contender.communicate(timeout=120) for contender in contenders]
    assert [error for _, error in told if error] == []
    assert sum(int(won) for won, _ in told) > 100
    assert set(os.listdir(scene.folder)) <= {"app.sock"}

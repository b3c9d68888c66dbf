"""A machine of its own for a real systemd: namespaces, control groups and an overlay over this machine's root.

It boots in about half a second, sees this machine's programs, and writes nothing that outlives it. Tests reach in from outside:
`run` enters its namespaces, `path` its files, `network` its loopback interface.
"""

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Self

from tests.procfs import children_of
from tests.waiting import DEADLINE, eventually

BOOT = Path(__file__).with_name("boot.sh")
SYSTEMD = Path("/lib/systemd/systemd")
NAME = "poold-machine"
NAMESPACES = ("--mount", "--pid", "--uts", "--ipc", "--net")
_libc = ctypes.CDLL(None, use_errno=True)


def hierarchies() -> dict[Path, str]:
    """Return where this machine has its control groups: mount points, each with the options that mount it again, "" for cgroup2.

    All of them, for systemd makes groups in every hierarchy that there is; where the machine has none of its own in one, they
    would be this machine's.
    """
    found = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if not place.startswith("/sys/fs/cgroup"):
            continue
        named = [option for option in options.split(",") if option not in ("rw", "ro", "relatime", "nosuid", "nodev", "noexec", "xattr")]
        if kind == "cgroup":
            found[Path(place)] = ",".join(["none", *named] if named[0].startswith("name=") else named)
        elif kind == "cgroup2":
            found[Path(place)] = ""
    return found


def make_group(group: Path) -> None:
    """Make a control group that processes can join at once."""
    group.mkdir()
    for inherited in ("cpuset.cpus", "cpuset.mems"):
        # Alone in the old hierarchies they begin empty, and nobody may join then (cpuset(7)).
        if (group / inherited).exists() and (group.parent / inherited).exists():
            (group / inherited).write_text((group.parent / inherited).read_text())


def missing() -> str:
    """Say what this machine lacks for another one inside it; "" for nothing."""
    if os.geteuid() != 0:
        return "only root can boot a machine"
    if not SYSTEMD.exists():
        return "systemd is not installed"
    for program in ("unshare", "nsenter", "setpriv", "pivot_root"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    groups = hierarchies()
    if "" not in groups.values() or not all(os.access(group, os.W_OK) for group in groups):
        return "control groups cannot be made here"
    tried = subprocess.run(["unshare", "--fork", *NAMESPACES, "--cgroup", "true"], capture_output=True, text=True, check=False)
    return f"namespaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else ""


class Machine:
    """A booted machine, to be closed."""

    def __init__(self, folder: Path, *, files: Mapping[str, str], binds: Mapping[str, Path]) -> None:
        """Boot with these files (path to text; to `-> TARGET` for a link) and with folders of this machine's, read-only, as /opt/NAME.

        `folder` is an empty one for whatever is needed here.
        """
        self._name = f"{NAME}-{os.getpid()}-{folder.name}"
        self._groups = hierarchies()
        for sub in ("files", "binds", "machine"):
            (folder / sub).mkdir(mode=0o755)
        for path, text in files.items():
            write(folder / "files" / path.lstrip("/"), text)
        for name, source in binds.items():
            (folder / "binds" / name).symlink_to(source)
        for hierarchy in self._groups:
            for group in hierarchy.glob(f"{NAME}-*"):
                # A run that was killed has left it; its processes died with it.
                if not Path("/proc", group.name.split("-")[2]).exists():
                    removed(group)
            make_group(hierarchy / self._name)
        variables = {**os.environ, "HIERARCHIES": " ".join(f"{place}:{options}" for place, options in self._groups.items())}
        # If this process is killed, the machine dies with it.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child", *NAMESPACES, str(BOOT), self._name, str(folder)]
        self._log = folder / "boot.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables)
        try:
            self._boot()
        except BaseException:
            self.close()
            raise

    def _boot(self) -> None:
        def running() -> bool:
            if self._process.poll() is not None:
                raise AssertionError(f"the machine did not boot:\n{self._log.read_text()}")
            first = children_of(self._process.pid)
            if not first or Path(f"/proc/{first[0]}/exe").resolve() != SYSTEMD.resolve():
                return False
            self.first = first[0]
            return self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")

        eventually(running, "the machine is up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Take it away with everything that runs in it."""
        # The end of its first process is the end of all of them, and of its mounts; unshare waits for that and ends as well.
        for first in children_of(self._process.pid):
            os.kill(first, signal.SIGKILL)
        self._process.wait(DEADLINE)
        for hierarchy in self._groups:
            if (empty := hierarchy / self._name / "memory.force_empty").exists():
                # What it has read from the disk would keep the group in the kernel until memory runs short.
                empty.write_text("0")
            eventually(partial(removed, hierarchy / self._name), f"{hierarchy / self._name} is gone")

    def enter(self, *command: str) -> list[str]:
        """Return the command that runs this one in the machine."""
        return ["nsenter", f"--target={self.first}", *NAMESPACES, "--cgroup", "--root", "--wd", "--", *command]

    def try_(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the machine to its end, whatever comes of it."""
        environ = {"PATH": "/opt/poold/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "NO_COLOR": "1"}
        return subprocess.run(self.enter(*command), capture_output=True, text=True, timeout=DEADLINE, env=environ, check=False)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a program in the machine and return what it prints; it is to end with 0."""
        done = self.try_(*command)
        assert not check or done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def path(self, path: str) -> Path:
        """Return where a file of the machine is for this process."""
        return Path(f"/proc/{self.first}/root", path.lstrip("/"))

    @contextmanager
    def network(self) -> Iterator[None]:
        """Let this thread make its sockets in the machine; they stay there."""
        with open(f"/proc/{self.first}/ns/net") as theirs, open("/proc/thread-self/ns/net") as ours:
            _set_network(theirs.fileno())
            try:
                yield
            finally:
                _set_network(ours.fileno())


def _set_network(fd: int) -> None:
    if _libc.setns(fd, 0x40000000) != 0:  # CLONE_NEWNET
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write(path: Path, text: str) -> None:
    """Write a file that everybody may read, or a link, and the folders on its way."""
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir(mode=0o755)
    if text.startswith("-> "):
        path.symlink_to(text.removeprefix("-> "))
        return
    path.write_text(text)
    path.chmod(0o644)


def removed(group: Path) -> bool:
    """Remove a control group with those below it; say whether it is gone."""
    for folder, _, _ in os.walk(group, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            # A process that has just ended still counts.
            return False
    return True

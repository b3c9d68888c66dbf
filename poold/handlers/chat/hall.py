"""Where the sessions of a chat meet: a private folder with one FIFO for each of them.

    <directory>/poold-chat-<uid>/<master's pid>-<its start time>-1/     the hall: one for each daemon
        names/<key of the name>                                       the session's FIFO, which claims its name
        rooms/<room>/<name>                                           a hard link to it, for the room it is in

Names are unique in a daemon, whatever their upper and lower case and the form of their letters. An owner holds its FIFO open for
reading and writing, so whoever opens it for writing alone, without waiting, learns by ENXIO that the owner is dead; no process ids
are kept, and none can be mistaken. The dead are cleared away by whoever meets them, the hall by the last one out.

Others can often make files where the folder is to be. So what has its name is judged by what it is once it is open, and everything
below is reached from open folders; what others have put in the way is left alone.

All changes are made under a lock (flock) on the hall's folder, but for the unlinking of one's own FIFO; sending takes no
lock. A FIFO is opened before the lock it was made under is let go: a FIFO without a reader is dead, not young.
Sessions of different versions of poold meet in one hall after an upgrade: who changes this layout or the records of
`room` changes the 1 at the end of the hall's name, too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from typing import Self

LAYOUT = 1
# As tempfile has them, without the weight of tempfile. What is made there is a private folder or an error.
TEMPORARY_FOLDERS = ("/tmp", "/var/tmp", "/usr/tmp")  # noqa: S108
# How many names its folder may have there: more than one, because others can make files there, too.
NAMES_MAX = 16
# What opening a link, a file or another user's folder in its place may fail with (open(2)).
FOREIGN = {errno.ENOTDIR, errno.ELOOP, errno.EACCES}
OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A holder keeps the lock for less than a millisecond, unless it was stopped: then nobody else shall stop with it.
LOCK_WAIT = 2.0
LOCK_PAUSES = (0.0005, 0.016)


def private_folder(parent: str | None) -> tuple[str, int]:
    """Return the path of this uid's folder under `parent`, made where it is missing, and a descriptor of it, which the caller closes.

    Without a parent the folder is among those for temporary files, where others may have taken its name: then it has another one.
    Who comes later takes the one that is there already. Raises PermissionError where something else has its name, or each of them:
    others could read and write what members say.
    """
    name = f"poold-chat-{os.geteuid()}"
    paths = [f"{parent}/{name}"]
    if parent is None:
        names = [name, *(f"{name}.{number}" for number in range(2, NAMES_MAX + 1))]
        paths = [f"{folder}/{each}" for folder in _temporary_folders() for each in names]
    for make in (False, True):
        for path in paths:
            fd = _open_private(path, make=make)
            if fd is not None:
                return path, fd
    more = f", nor is any of {len(paths)} others" if parent is None else ""
    reason = f"{paths[0]} is not a folder of uid {os.geteuid()} with mode 0700{more}"
    raise PermissionError(f"{reason}: remove it, or set the option directory to a folder that nobody else can write to")


def _temporary_folders() -> list[str]:
    candidates = [os.environ.get("TMPDIR", ""), *TEMPORARY_FOLDERS]
    return [folder for folder in candidates if folder and os.access(folder, os.W_OK | os.X_OK)] or [TEMPORARY_FOLDERS[0]]


def _open_private(path: str, *, make: bool) -> int | None:
    """Open a folder that is this uid's alone, if need be after making it; None where there is none, or something else."""
    if make:
        make_folder(path)
    try:
        fd = os.open(path, OPEN_FOLDER)
    except FileNotFoundError:
        if make:
            # The last one out of it has removed it since.
            raise
        return None
    except OSError as error:
        if error.errno not in FOREIGN:
            raise
        return None
    found = os.fstat(fd)
    if found.st_uid == os.geteuid() and not found.st_mode & 0o077:
        return fd
    os.close(fd)
    return None


def hall_name(master: int) -> str:
    """Return the name of the hall of the daemon whose master has this pid."""
    try:
        with open(f"/proc/{master}/stat", "rb") as file:
            # Field 22; the second, the only one that may hold spaces and parentheses, ends with the last ")".
            started = int(file.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        # /proc hides other users' processes here. The pid alone tells living daemons apart, and the dead leave no live FIFO.
        started = 0
    return f"{master}-{started}-{LAYOUT}"


def make_folder(path: str, dir_fd: int | None = None) -> None:
    """Make a folder where it is missing."""
    try:
        os.mkdir(path, 0o700, dir_fd=dir_fd)
    except FileExistsError:
        # Another session was first.
        return


class Hall:
    """The folder of one daemon's chat; as a context manager, the lock on it. Paths are relative to the folder."""

    __slots__ = ("_fd", "_name")

    def __init__(self, name: str, base: int) -> None:
        """Open the hall of this name in the folder of this descriptor. Raises OSError."""
        self._name = name
        self._fd = os.open(name, OPEN_FOLDER, dir_fd=base)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._fd)

    def try_lock(self) -> bool:
        """Lock the folder if nobody else has; `unlock` ends it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __enter__(self) -> Self:
        """Wait for the lock, but not for long: raises TimeoutError."""
        until = monotonic() + LOCK_WAIT
        pause, longest = LOCK_PAUSES
        while not self.try_lock():
            if monotonic() > until:
                raise TimeoutError(f"{self._name} has been locked for {LOCK_WAIT:.0f} seconds")
            select.select((), (), (), pause)
            pause = min(2 * pause, longest)
        return self

    def __exit__(self, *exception: object) -> None:
        self.unlock()

    def unlock(self) -> None:
        """Let go of the lock."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def stands(self) -> bool:
        """Say whether the folder still has its name; asked under the lock, since the last one out removes it."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(f"../{self._name}", dir_fd=self._fd))
        except FileNotFoundError:
            return False

    def furnish(self, room: str) -> None:
        """Make the folders for names and for this room where they are missing."""
        for folder in ("names", "rooms", f"rooms/{room}"):
            make_folder(folder, self._fd)

    def entries(self, folder: str) -> list[str]:
        """Return the file names in a folder; one that is not there has none."""
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            return []
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def open_writer(self, path: str) -> int:
        """Open a FIFO to write to its owner without waiting. Raises FileNotFoundError, and OSError ENXIO if the owner is dead."""
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)

    def is_dead(self, path: str) -> bool:
        """Say whether there is a FIFO that nobody owns any more."""
        try:
            os.close(self.open_writer(path))
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return True
        return False

    def touch(self, path: str) -> None:
        """Make a file young again."""
        os.utime(path, dir_fd=self._fd)

    def make_fifo(self, path: str) -> int | None:
        """Make a FIFO and return it opened by its owner, None if the path is taken. To be called under the lock."""
        self.clear(path)
        try:
            os.mkfifo(path, 0o600, dir_fd=self._fd)
        except FileExistsError:
            return None
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)

    def link(self, source: str, target: str) -> bool:
        """Give a FIFO one more path, or say that another has it. To be called under the lock."""
        self.clear(target)
        try:
            os.link(source, target, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except FileExistsError:
            return self._are_one(source, target)
        return True

    def _are_one(self, source: str, target: str) -> bool:
        try:
            return os.path.samestat(os.stat(source, dir_fd=self._fd), os.stat(target, dir_fd=self._fd))
        except FileNotFoundError:
            # Its owner is leaving in this moment, which takes no lock; it was another's.
            return False

    def unlink(self, path: str) -> None:
        """Remove a path if it is there."""
        try:
            os.unlink(path, dir_fd=self._fd)
        except FileNotFoundError:
            # Someone else's hand has removed it; gone is what it was to be.
            return

    def clear(self, path: str) -> bool:
        """Remove a FIFO if its owner is dead, and say whether it was. To be called under the lock."""
        dead = self.is_dead(path)
        if dead:
            self.unlink(path)
        return dead

    def remove_folder(self, folder: str) -> bool:
        """Remove a folder if none of its owners lives, and say whether it is gone. To be called under the lock."""
        if not all(self.clear(f"{folder}/{entry}") for entry in self.entries(folder)):
            return False
        return remove_empty(folder, self._fd)

    def remove(self) -> None:
        """Remove the whole hall if nobody in it lives. To be called under the lock."""
        rooms = [f"rooms/{room}" for room in self.entries("rooms")]
        if all(map(self.remove_folder, ["names", *rooms, "rooms"])):
            remove_empty(f"../{self._name}", self._fd)

    def remove_base(self, path: str) -> None:
        """Remove the folder that the halls are in, if there is none left; `path` is where it was, and another's may be there now."""
        name = f"../../{os.path.basename(path)}"
        try:
            ours = os.path.samestat(os.stat("..", dir_fd=self._fd), os.lstat(name, dir_fd=self._fd))
        except FileNotFoundError:
            # Somebody else was faster.
            return
        if ours:
            remove_empty(name, self._fd)


def remove_empty(path: str, dir_fd: int | None = None) -> bool:
    """Remove a folder if nothing is in it, and say whether it is gone."""
    try:
        os.rmdir(path, dir_fd=dir_fd)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def remove_deserted(base: int, own: str) -> None:
    """Remove the halls of dead daemons: those in which nobody lives."""
    for name in os.listdir(base):
        if name == own:
            continue
        try:
            hall = Hall(name, base)
        except OSError:
            # Another session has just removed it, or it is none of ours.
            continue
        try:
            if hall.try_lock():
                hall.remove()
        finally:
            hall.close()

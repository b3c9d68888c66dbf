"""The folder in which the sessions of a chat meet: a private folder with one FIFO for each session.

    <directory>/poold-chat-<uid>/<master's pid>-<start time>-1/    the hall: one for each daemon
        names/<key of the name>      the session's FIFO, which claims the name
        rooms/<room>/<name>          a hard link to the FIFO, for the session's room

A name is unique in a daemon, without regard to upper and lower case and to the form of its letters.
The owner of a FIFO holds the FIFO open for reading and writing. Another session opens the FIFO for
writing only, without waiting. The error ENXIO then says that the owner is dead. No pid is stored,
so no pid can be mistaken for another. The session that finds a dead owner removes its FIFO, and the
last session removes the hall.

Other users can often create files where the folder is to be. A session opens whatever has the
folder's name, and then checks what the descriptor refers to. All paths below are relative to open
folders. Files of other users in the way are left alone.

A session changes the hall only under a lock (flock) on the hall's folder. The exceptions are
sending, and the removal of its own FIFO. A session opens its new FIFO before the session releases
the lock. A FIFO without a reader counts as dead. After an upgrade sessions of two versions of poold
share one hall. A change of this layout or of the records of `room` must therefore change the 1 at
the end of the hall's name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from typing import Self

LAYOUT_VERSION = 1
# The same folders as in `tempfile`, which is too large to import here. A file in one of them is
# never trusted: poold makes a private folder there or fails.
TEMPORARY_FOLDERS = ("/tmp", "/var/tmp", "/usr/tmp")  # noqa: S108
# The number of names that the private folder may have there. Other users can make files there and
# take one of the names.
NAMES_MAX = 16
# The errors of open(2) where a link, a file or another user's folder has the name.
FOREIGN_ERRORS = {errno.ENOTDIR, errno.ELOOP, errno.EACCES}
OPEN_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Seconds that a session waits for the lock. The holder needs much less, unless a signal has stopped
# the holder. The other sessions must not stop as well.
LOCK_WAIT = 2.0
LOCK_PAUSES = (0.0005, 0.016)


def private_folder(parent: str | None) -> tuple[str, int]:
    """Return path and descriptor of this uid's folder under `parent`.

    The caller closes the descriptor. A missing folder is made. Without a parent the folder is in a
    folder for temporary files. Another user may have taken its name there, and then the folder gets
    another name. A later session takes the folder that exists. Raises PermissionError if something
    else has the name, or each of the names. Other users could then read and write what members say.
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
    """Open a folder that only this uid may use. `make`: make the folder first if it is missing.

    Return None where the folder is missing or something else has its name.
    """
    if make:
        make_folder(path)
    try:
        fd = os.open(path, OPEN_FOLDER_FLAGS)
    except FileNotFoundError:
        if make:
            # The last session of another daemon has removed the folder in between.
            raise
        return None
    except OSError as error:
        if error.errno not in FOREIGN_ERRORS:
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
            # The start time is field 22. Field 2 may hold spaces and parentheses, and ends with the
            # last ")".
            started = int(file.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        # Here /proc hides the processes of other users. The pid alone tells living daemons apart. A
        # dead daemon leaves no FIFO with a living owner.
        started = 0
    return f"{master}-{started}-{LAYOUT_VERSION}"


def make_folder(path: str, dir_fd: int | None = None) -> None:
    """Make a folder unless it exists."""
    try:
        os.mkdir(path, 0o700, dir_fd=dir_fd)
    except FileExistsError:
        # Another session has made the folder.
        return


class Hall:
    """The folder of one daemon's chat. Paths are relative to this folder.

    As a context manager, a hall is locked.
    """

    __slots__ = ("_fd", "_name")

    def __init__(self, name: str, base: int) -> None:
        """Open the hall with this name in the folder with this descriptor. Raises OSError."""
        self._name = name
        self._fd = os.open(name, OPEN_FOLDER_FLAGS, dir_fd=base)

    def close(self) -> None:
        """Close the folder's descriptor."""
        os.close(self._fd)

    def try_lock(self) -> bool:
        """Lock the folder, and return whether that has succeeded. `unlock` ends the lock."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __enter__(self) -> Self:
        """Lock the folder. Raises TimeoutError after `LOCK_WAIT` seconds."""
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
        """Release the lock."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def has_its_name(self) -> bool:
        """Return whether the folder still has its name. The caller holds the lock.

        The last session that leaves removes the folder.
        """
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(f"../{self._name}", dir_fd=self._fd))
        except FileNotFoundError:
            return False

    def make_folders(self, room: str) -> None:
        """Make the folders for names and for this room, unless they exist."""
        for folder in ("names", "rooms", f"rooms/{room}"):
            make_folder(folder, self._fd)

    def entries(self, folder: str) -> list[str]:
        """Return the file names in a folder, none for a missing folder."""
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            return []
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def open_writer(self, path: str) -> int:
        """Open a FIFO for writing to its owner, without waiting.

        Raises FileNotFoundError, and OSError ENXIO if the owner is dead.
        """
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)

    def is_dead(self, path: str) -> bool:
        """Return whether there is a FIFO whose owner is dead."""
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
        """Set a file's times to now."""
        os.utime(path, dir_fd=self._fd)

    def make_fifo(self, path: str) -> int | None:
        """Make and open a FIFO as its owner. Return its descriptor, or None if the path is taken.

        The caller holds the lock.
        """
        self.clear(path)
        try:
            os.mkfifo(path, 0o600, dir_fd=self._fd)
        except FileExistsError:
            return None
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)

    def link(self, source: str, target: str) -> bool:
        """Give a FIFO one more path. Return False if another FIFO has that path.

        The caller holds the lock.
        """
        self.clear(target)
        try:
            os.link(source, target, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except FileExistsError:
            return self._same_file(source, target)
        return True

    def _same_file(self, source: str, target: str) -> bool:
        try:
            return os.path.samestat(os.stat(source, dir_fd=self._fd), os.stat(target, dir_fd=self._fd))
        except FileNotFoundError:
            # Another owner has just removed its FIFO, which takes no lock.
            return False

    def unlink(self, path: str) -> None:
        """Remove a path if it exists."""
        try:
            os.unlink(path, dir_fd=self._fd)
        except FileNotFoundError:
            # Another process has removed the path, which was the aim.
            return

    def clear(self, path: str) -> bool:
        """Remove a FIFO if its owner is dead. Return whether the owner was dead.

        The caller holds the lock.
        """
        dead = self.is_dead(path)
        if dead:
            self.unlink(path)
        return dead

    def remove_folder(self, folder: str) -> bool:
        """Remove a folder if no owner in it lives. Return whether the folder is gone.

        The caller holds the lock.
        """
        if not all(self.clear(f"{folder}/{entry}") for entry in self.entries(folder)):
            return False
        return remove_empty(folder, self._fd)

    def remove(self) -> None:
        """Remove the whole hall if no owner in it lives. The caller holds the lock."""
        rooms = [f"rooms/{room}" for room in self.entries("rooms")]
        if all(map(self.remove_folder, ["names", *rooms, "rooms"])):
            remove_empty(f"../{self._name}", self._fd)

    def remove_base(self, path: str) -> None:
        """Remove the folder of all halls if no hall is left.

        `path` is the path at which a session has opened that folder. Another user's folder may have
        this path by now.
        """
        name = f"../../{os.path.basename(path)}"
        try:
            ours = os.path.samestat(os.stat("..", dir_fd=self._fd), os.lstat(name, dir_fd=self._fd))
        except FileNotFoundError:
            # Another session has removed the folder.
            return
        if ours:
            remove_empty(name, self._fd)


def remove_empty(path: str, dir_fd: int | None = None) -> bool:
    """Remove a folder if it is empty. Return whether the folder is gone."""
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
    """Remove the halls of dead daemons: the halls in which no owner lives."""
    for name in os.listdir(base):
        if name == own:
            continue
        try:
            hall = Hall(name, base)
        except OSError:
            # Another session has just removed the hall, or the name is not a hall's.
            continue
        try:
            if hall.try_lock():
                hall.remove()
        finally:
            hall.close()

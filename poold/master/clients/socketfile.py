"""Makes, changes, recognises and removes the files of unix sockets.

Other users may be able to write to the folder. There, a name may stand for another file at each
look. A descriptor that follows no link holds what is found (open(2), O_PATH and O_NOFOLLOW). The
descriptor is compared with the socket's own file. Changes go through /proc/self/fd/N, because
fchmod and fchown refuse such a descriptor. unlink takes only a name. For unlink the folder is a
descriptor, so that nothing outside the folder can be removed.

Device and inode identify a socket's own file. The kernel keeps both for as long as the socket is
open, even if the name is removed.
"""

import errno
import fcntl
import os
import select
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from poold.log import log
from poold.master.clients.sockdiag import unix_file

File = tuple[int, int]
# The identity of no file. The socket's file was replaced before its identity could be read.
NOWHERE: File = (0, 0)

_PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# The errors of an open where no file of this socket can be: the name or the folder is gone, or
# leads elsewhere.
_NOT_OURS = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES}
# The seconds between two tries to take a lock that another poold holds for a moment.
_LOCK_EVERY = 0.01


@dataclass(frozen=True, slots=True)
class Rights:
    """Mode, owner and group of a file. -1 leaves the owner or group as before (chown(2))."""

    mode: int
    uid: int = -1
    gid: int = -1


def make(listening: socket.socket, path: str, rights: Rights, *, patience: float) -> File:
    """Bind a socket to a new file and give the file these rights. Return the file's identity.

    Return NOWHERE where another process has replaced the file meanwhile. A file to which no socket
    is bound any more is replaced. `patience` is how many seconds to wait for another poold that
    makes the same file. Raises OSError, with EADDRINUSE where another process has a socket bound to
    the file.

    The caller calls this before listen(). Until then the kernel lets no client connect, even if the
    file's rights would (connect(2), ECONNREFUSED).
    """
    # The kernel gives the file the mode of the socket, less the umask (unix_bind_bsd in
    # net/unix/af_unix.c). `_is_newborn` recognises the file by its mode of 0.
    os.fchmod(listening.fileno(), 0)
    _bind(listening, path, patience)
    fd = _open_path(path)
    if fd is None:
        return NOWHERE
    try:
        if not _is_newborn(fd, listening):
            return NOWHERE
        file = _identity(os.fstat(fd))
        try:
            # The mode first: after a change of the owner, chmod would take CAP_FOWNER.
            os.chmod(_proc_path(fd), rights.mode)
            if (rights.uid, rights.gid) != (-1, -1):
                os.chown(_proc_path(fd), rights.uid, rights.gid)
        except OSError:
            remove(path, file)
            raise
        return file
    finally:
        os.close(fd)


def change(path: str, file: File, rights: Rights, listening: socket.socket) -> None:
    """Give the file of an open socket other rights.

    Raises OSError, with ENOENT where the name does not stand for the socket's file any more.
    """
    fd = _open_path(path)
    if fd is None:
        raise _file_lost()
    try:
        status, inode = os.fstat(fd), unix_file(listening)
        if _identity(status) != file or not stat.S_ISSOCK(status.st_mode) or inode not in (None, _low_inode(status)):
            raise _file_lost()
        _set_rights(fd, status, rights)
    finally:
        os.close(fd)


def _set_rights(fd: int, status: os.stat_result, rights: Rights) -> None:
    """Set owner, group and mode of a file.

    For a moment the file has one owner and the mode of the other. The mode is narrowed first, so
    that no user gets in by the combination.
    """
    proc_path, before = _proc_path(fd), stat.S_IMODE(status.st_mode)
    if rights.uid not in (-1, status.st_uid) or rights.gid not in (-1, status.st_gid):
        both = before & rights.mode
        if both != before:
            os.chmod(proc_path, both)
        try:
            os.chown(proc_path, rights.uid, rights.gid)
        except OSError:
            if both != before:
                os.chmod(proc_path, before)
            raise
    if stat.S_IMODE(os.fstat(fd).st_mode) != rights.mode:
        os.chmod(proc_path, rights.mode)


def file_in_place(path: str, file: File) -> bool:
    """Say whether a name still stands for a socket's own file, so that clients find the socket."""
    try:
        return _identity(os.lstat(path)) == file
    except OSError:
        return False


def remove(path: str, file: File) -> None:
    """Remove a socket's own file, if the name still stands for that file.

    The caller calls this while the socket is open. After the close, another poold may take the file
    for a stale one and put a file of its own there, which must stay. A user may still replace the
    file between the look and the unlink. A user who can do so may remove files from that folder
    anyway. A file that cannot be removed is logged as a warning and not raised, so that the caller
    goes on closing.
    """
    folder, name = os.path.split(path)
    try:
        fd = os.open(folder, _FOLDER_FLAGS)
        try:
            if _identity(os.stat(name, dir_fd=fd, follow_symlinks=False)) == file:
                os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        # The file or its folder has gone already.
        return
    except OSError as error:
        log.warning("socket_file_not_removed", path=path, errno=errno.errorcode.get(error.errno or 0, "other"))


def _open_path(path: str) -> int | None:
    """Return a descriptor of what a name stands for, or None where the name leads nowhere.

    Raises OSError.
    """
    try:
        return os.open(path, _PATH_FLAGS)
    except OSError as error:
        if error.errno in _NOT_OURS:
            return None
        raise


def _proc_path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _identity(status: os.stat_result) -> File:
    return status.st_dev, status.st_ino


def _low_inode(status: os.stat_result) -> int:
    """Return the inode number in the form of `unix_file`."""
    return status.st_ino & 0xFFFFFFFF


def _file_lost() -> OSError:
    return FileNotFoundError(errno.ENOENT, "its socket file was removed or replaced")


def _is_newborn(fd: int, listening: socket.socket) -> bool:
    """Say whether a descriptor is of the file that this socket's bind has just made.

    The kernel may not tell the file's number. The file must then be a socket of this user's, with
    mode 0 and a link count of 1. Only another poold at the same moment makes another file like
    that.
    """
    status = os.fstat(fd)
    if not stat.S_ISSOCK(status.st_mode) or stat.S_IMODE(status.st_mode):
        return False
    inode = unix_file(listening)
    if inode is None:
        return status.st_uid == os.geteuid() and status.st_nlink == 1
    return inode == _low_inode(status)


def _bind(listening: socket.socket, path: str, patience: float) -> None:
    folder, name = os.path.split(path)
    fd = os.open(folder, _FOLDER_FLAGS)
    try:
        # The lock is held also where there is no file to remove. At first the new file has no bound
        # socket, and looks stale to another poold.
        with _locked(fd, name, patience):
            _remove_stale(fd, name)
            listening.bind(path)
    finally:
        os.close(fd)


def _remove_stale(folder: int, name: str) -> None:
    try:
        fd = os.open(name, _PATH_FLAGS, dir_fd=folder)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise FileExistsError(errno.EEXIST, "the path exists and is not a socket")
        if _is_bound(fd):
            raise OSError(errno.EADDRINUSE, "another process listens there")
        # A poold that was just ending has removed the file.
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
    finally:
        os.close(fd)


def _is_bound(fd: int) -> bool:
    """Say whether any process has a socket bound to this file.

    False stays false, because a socket is never bound to a file that exists already. A datagram
    socket asks. The kernel answers EPROTOTYPE for a bound stream socket (unix_find_bsd in
    net/unix/af_unix.c). The stream socket gets no connection from this, and needs neither room in
    the queue nor to listen.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_proc_path(fd))
        except ConnectionRefusedError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPROTOTYPE, errno.EPERM):
                raise
    return True


@contextmanager
def _locked(folder: int, name: str, patience: float) -> Iterator[None]:
    """Hold a lock that lets one poold at a time make or replace a socket file.

    The lock is on a file beside the socket file, and that file is removed at the end. Any user that
    can list the folder could lock the folder (flock(2)). Only the owner can open the file. Raises
    BlockingIOError when another poold holds the lock for longer than `patience` seconds.
    """
    lock = f".{name}.lock"
    until = time.monotonic() + patience
    while (fd := _try_lock(folder, lock)) is None:
        if time.monotonic() >= until:
            raise BlockingIOError(errno.EAGAIN, "another poold is starting there")
        select.select((), (), (), _LOCK_EVERY)
    try:
        yield
    finally:
        try:
            # The file is removed before the lock is released. A poold that waits for the lock then
            # sees that this file is no longer the lock.
            with suppress(FileNotFoundError):
                os.unlink(lock, dir_fd=folder)
        finally:
            os.close(fd)


def _try_lock(folder: int, lock: str) -> int | None:
    """Return the descriptor of the lock, held now.

    Return None where another poold holds the lock or has just removed the file. Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(lock, flags, 0o600, dir_fd=folder)
    except OSError as error:
        raise OSError(error.errno, f"{lock} beside it cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077 or status.st_nlink > 1:
            raise PermissionError(errno.EPERM, f"{lock} beside it is not poold's own: remove it")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _identity(os.stat(lock, dir_fd=folder, follow_symlinks=False)) == _identity(status):
            held, fd = fd, -1
            return held
    except (BlockingIOError, FileNotFoundError):
        # Another poold holds the lock, or held the lock until now.
        return None
    finally:
        if fd >= 0:
            os.close(fd)
    return None

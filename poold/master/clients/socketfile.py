"""The files of unix sockets: made, given away, known again and removed, also in a folder that others may write to.

There, a name may stand for something else at each look. So what is found is held by a descriptor that follows no link (open(2),
O_PATH and O_NOFOLLOW), the descriptor is compared with the socket's own file, and what is changed is what the descriptor stands for
(/proc/self/fd/N, because fchmod and fchown refuse such a descriptor). A name is all that unlink takes: the folder is a
descriptor then, so that nothing outside it can be hit.

A socket's own file is told by device and inode. The kernel keeps both for as long as the socket is open, whatever becomes of the name.
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
# What no file has: the socket's own was replaced before anything could be found out about it.
NOWHERE: File = (0, 0)

_PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# How an open fails where there is nothing of ours: the name or its folder is gone, or leads elsewhere.
_NOT_OURS = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES}
# How often a lock that another poold holds for a moment is tried again, in seconds.
_LOCK_EVERY = 0.01


@dataclass(frozen=True, slots=True)
class Rights:
    """Mode, owner and group of a file; -1 leaves owner or group as they are (chown(2))."""

    mode: int
    uid: int = -1
    gid: int = -1


def make(listening: socket.socket, path: str, rights: Rights, *, patience: float) -> File:
    """Bind a socket to a file of its own and give it its rights; return the file, NOWHERE where somebody has replaced it meanwhile.

    To be called before listen(): until then the kernel lets nobody connect, whatever the file's rights are (connect(2), ECONNREFUSED).
    A file that no socket is bound to any more is replaced. `patience` is how many seconds another poold may be at the same file.
    Raises OSError; EADDRINUSE where another process has its socket there.
    """
    # The file gets the mode of the socket, less the umask (unix_bind_bsd in net/unix/af_unix.c). None at all is what it is known by.
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
            # The mode first: the owner's file would take CAP_FOWNER.
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
    """Give the file of an open socket other rights. Raises OSError; ENOENT where the name does not stand for it any more."""
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
    """Give a file other rights; for a moment it has one owner and the mode of the other, and nobody may get in by both."""
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
    """Say whether a name still stands for a socket's own file, so that clients find it."""
    try:
        return _identity(os.lstat(path)) == file
    except OSError:
        return False


def remove(path: str, file: File) -> None:
    """Remove a socket's own file, if the name still stands for it; to be called while the socket is open.

    Once it is closed, another poold may take the file for a stale one and put its own there, which must not be what is removed.
    What may be removed instead, if somebody replaces the file after the look, is in a folder that he may remove it from himself.
    A file that cannot be removed is a warning and no error: whoever closes the socket goes on.
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
        # It has gone already, or its folder has.
        return
    except OSError as error:
        log.warning("socket_file_not_removed", path=path, errno=errno.errorcode.get(error.errno or 0, "other"))


def _open_path(path: str) -> int | None:
    """Return a descriptor of what a name stands for, None where it leads nowhere. Raises OSError."""
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
    """Return an inode's number as `unix_file` has it."""
    return status.st_ino & 0xFFFFFFFF


def _file_lost() -> OSError:
    return FileNotFoundError(errno.ENOENT, "its socket file was removed or replaced")


def _is_newborn(fd: int, listening: socket.socket) -> bool:
    """Say whether a descriptor is of the file that this socket's bind has just made.

    Where the kernel does not tell the file's number it is a socket of this user's without any rights, under one name: another one
    like it is made only by another poold, at the same moment.
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
        # Also where there is nothing to remove: the file is there a moment before the socket is bound to it, and looks stale.
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
        # One that was just ending has removed it itself.
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
    finally:
        os.close(fd)


def _is_bound(fd: int) -> bool:
    """Say whether any process has a socket bound to this file. What says no stays so: a socket is never bound to a file that is there.

    The question is asked by a socket of another type, so that a stream socket neither gets a connection by it nor need have room for one
    in its queue nor even listen: the kernel answers EPROTOTYPE (unix_find_bsd in net/unix/af_unix.c).
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
    """Let one poold at a time make or replace a socket file, by the lock of a file beside it that is removed at the end.

    Not of the folder, which anybody can lock who can list it (flock(2)); this file only its owner can open. Raises BlockingIOError when
    another poold holds it for longer than `patience` seconds.
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
            # Before it is let go: who waits for it sees then that this one is not the lock any more.
            with suppress(FileNotFoundError):
                os.unlink(lock, dir_fd=folder)
        finally:
            os.close(fd)


def _try_lock(folder: int, lock: str) -> int | None:
    """Return the descriptor of a lock that is held now, None where another has it or has just removed it. Raises OSError."""
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
        # Another poold is at it, or was until now.
        return None
    finally:
        if fd >= 0:
            os.close(fd)
    return None

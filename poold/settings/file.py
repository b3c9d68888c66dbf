"""Where the settings file is, and its bytes; and where the control socket is.

Reading opens one regular file, so a FIFO cannot block the reader, and stops at a limit. Only
`make_control_folder` changes anything. `poold.settings.judge` tells what the bytes mean.

`_follow` follows a path once, a name at a time. So what is said of a file and of the folders on the
way is true of the very file that is read.
"""

import errno
import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from poold.address import UNIX_PATH_MAX
from poold.errors import ConfigError, Problem

FILE_BYTES_MAX = 1 << 20
LOCAL_FILE = Path("poold.toml")
SYSTEM_FILE = Path("/etc/poold/poold.toml")
SYSTEM_CONTROL_FOLDER = Path("/run/poold")
TEMPORARY_FOLDER = Path("/tmp")  # noqa: S108 -- what is used there is a folder of the user's own, or none
CONTROL_NAME = "control.sock"
# The kernel follows as many (path_resolution(7)).
LINKS_MAX = 40

_HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_HOLD_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def find(path_option: str | None, environ: Mapping[str, str]) -> tuple[Path | None, bytes, tuple[str, ...]]:
    """Return the absolute path of the settings file (None: there is none), its bytes, and warnings.

    The places are `path_option`, $POOLD_CONFIG, ./poold.toml and /etc/poold/poold.toml. If one of
    the first two is given, no other is tried. Root passes over a ./poold.toml that others may
    write, with a warning. Raises ConfigError for a file that is there and cannot be read.
    """
    named = environ.get("POOLD_CONFIG") or None if path_option is None else path_option
    if named is not None:
        text, reason = _read(Path(named))
        return Path(named).absolute(), text, _cautions(reason)
    passed_over: tuple[str, ...] = ()
    for file in (LOCAL_FILE, SYSTEM_FILE):
        try:
            file.lstat()
        except (FileNotFoundError, NotADirectoryError):
            # Nothing there: the next place.
            continue
        except OSError as error:
            raise _unreadable(file, error) from None
        text, reason = _read(file)
        if file is LOCAL_FILE and reason:
            passed_over = (f"./{file} is passed over because {reason}; name it with -c to use it all the same",)
            continue
        return file.absolute(), text, passed_over
    return None, b"", passed_over


def cautions(file: Path) -> tuple[str, ...]:
    """Return the warnings for a file that is used because an operator named that file."""
    try:
        held, reason = _follow(file.absolute())
    except OSError:
        # The file was there a moment ago. The next reader reports that the file is gone.
        return ()
    os.close(held)
    return _cautions(reason)


def _cautions(reason: str) -> tuple[str, ...]:
    return (f"{reason}: whoever writes it decides what poold runs as root",) if reason else ()


def read_file(file: Path) -> bytes:
    """Return a file's bytes. Raises ConfigError for a special or too large file."""
    return _read(file)[0]


def _read(file: Path) -> tuple[bytes, str]:
    """Return a file's bytes and, for root, why another user could change them; "" if none could."""
    try:
        held, reason = _follow(file.absolute())
    except OSError as error:
        raise _unreadable(file, error) from None
    try:
        # The kind is known before the file is opened. Opening a device can start something, and
        # opening a FIFO waits for a writer.
        mode = os.fstat(held).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError([Problem("", f"cannot be read: it is {file_kind(mode)}, not a regular file")], str(file))
        with open(f"/proc/self/fd/{held}", "rb") as opened:
            text = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise _unreadable(file, error) from None
    finally:
        os.close(held)
    if len(text) > FILE_BYTES_MAX:
        raise ConfigError([Problem("", f"is too large: settings have at most {FILE_BYTES_MAX >> 20} MiB")], str(file))
    return text, reason


def _follow(path: Path) -> tuple[int, str]:
    """Follow an absolute path, a name at a time, to its end. Raises OSError.

    Return a descriptor (O_PATH) and, for root, the first reason why another user could change what
    the path leads to; "" for no reason. A user that may write to a folder on the way could change
    that. Links lead through folders too. The caller closes the descriptor.
    """
    names, place, links, reason = list(reversed(path.parts)), path, 0, ""
    kernels = os.stat("/proc/self/fd").st_dev
    with ExitStack() as passed:

        def hold(name: str, folder: int | None, flags: int) -> int:
            fd = os.open(name, flags, dir_fd=folder)
            passed.callback(os.close, fd)
            return fd

        held: int | None = None
        while names:
            name = names.pop()
            # The name "/", of the path or of a link, leads to the root from any folder.
            found = hold(name, held, _HOLD)
            status = os.fstat(found)
            if not stat.S_ISLNK(status.st_mode):
                held, place = found, place / name
                reason = reason or _others(status, place)
                continue
            links += 1
            # In a folder such as /tmp any user can make a link.
            reason = reason or (f"{place / name} does not belong to root" if status.st_uid != 0 else "")
            if links > LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if status.st_dev == kernels:
                # A link such as /dev/stdin leads to an open file and not to a path, so no user can
                # replace the file.
                held = hold(name, held, os.O_PATH | os.O_CLOEXEC)
            else:
                names += reversed(Path(os.readlink("", dir_fd=found)).parts)
        assert held is not None
        return os.dup(held), reason if os.geteuid() == 0 else ""


def _others(status: os.stat_result, place: Path) -> str:
    """Return why another user than root may change a file or a folder; "" if none may."""
    if status.st_uid != 0:
        return f"{place} does not belong to root"
    # In a folder with the sticky bit only its owner can replace a file.
    if status.st_mode & 0o022 and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
        return f"others may write to {place}"
    return ""


def file_kind(mode: int) -> str:
    """Return what an operator calls a file of this st_mode."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def _unreadable(file: Path, error: OSError) -> ConfigError:
    return ConfigError([Problem("", f"cannot be read: {(error.strerror or str(error)).lower()}")], str(file))


def control_candidates(environ: Mapping[str, str], uid: int) -> list[Path]:
    """Return the default places of this user's control socket, the likeliest first.

    The folders are $RUNTIME_DIRECTORY (the first, if several are named), $XDG_RUNTIME_DIR/poold,
    /run/poold, and a private folder of the user in $TMPDIR or else in /tmp. The private folder is
    left out if another user owns that folder, because that user would answer there. No file is
    made.
    """
    runtime = Path(environ.get("RUNTIME_DIRECTORY", "").split(":")[0])
    session = Path(environ.get("XDG_RUNTIME_DIR", ""))
    folders = [folder for folder, base in ((runtime, runtime), (session / "poold", session)) if base.is_absolute()]
    temporary = Path(environ.get("TMPDIR", ""))
    private = (temporary if temporary.is_absolute() else TEMPORARY_FOLDER) / f"poold-{uid}"
    folders += [SYSTEM_CONTROL_FOLDER, *([private] if _is_own(private, uid) else [])]
    return [folder / CONTROL_NAME for folder in folders]


def control_path(chosen: str | None, environ: Mapping[str, str], uid: int) -> Path:
    """Return where the master binds the control socket. Raises ConfigError if no place will do.

    Without a chosen path, that is the first candidate whose folder can be used or made.
    """
    if chosen is not None:
        return Path(chosen)
    candidates = control_candidates(environ, uid)
    for place in candidates:
        if _is_usable(place.parent) and len(os.fsencode(place)) <= UNIX_PATH_MAX:
            return place
    raise ConfigError([Problem("control.socket", f"must be set: none of {', '.join(map(str, candidates))} can be used")])


def make_control_folder(place: Path, uid: int) -> None:
    """Make the folder of a control socket, with mode 0700, if there is none. Raises OSError.

    In a shared parent another user may have made the folder. So there a folder is used only if this
    user owns that folder and no other user can write to it.
    """
    parent = os.open(place.parent.parent, _HOLD_FOLDER)
    try:
        shared = os.fstat(parent).st_mode & 0o022
        try:
            os.mkdir(place.parent.name, 0o700, dir_fd=parent)
        except FileExistsError:
            status = os.stat(place.parent.name, dir_fd=parent, follow_symlinks=not shared)
            own = status.st_uid == uid and not status.st_mode & 0o022
            if not stat.S_ISDIR(status.st_mode) or (shared and not own):
                raise PermissionError(errno.EPERM, "belongs to another user, or others may write to it", str(place.parent)) from None
    finally:
        os.close(parent)


def _is_own(folder: Path, uid: int) -> bool:
    """Tell whether a folder is not there, or is one to which only this user can write."""
    try:
        info = folder.lstat()
    except OSError:
        return True
    return stat.S_ISDIR(info.st_mode) and info.st_uid == uid and not info.st_mode & 0o022


def _is_usable(folder: Path) -> bool:
    """Tell whether a socket can be made in a folder that is there or can be made.

    This is a first choice; `make_control_folder` may still refuse the folder.
    """
    try:
        info = folder.stat()
    except FileNotFoundError:
        return os.access(folder.parent, os.W_OK | os.X_OK)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and os.access(folder, os.W_OK | os.X_OK)

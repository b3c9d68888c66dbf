"""The settings file: where it is, and its bytes; and where the control socket is.

It opens one file for reading, which can neither block it nor fill its memory, and changes nothing but, when asked to, the folder of
the control socket. What the bytes mean is `poold.settings.judge`'s.

A path is followed once, a name at a time (`_follow`): what is said of a file and of the folders on its way is true of the very
file that is read.
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
# As many as the kernel follows (path_resolution(7)).
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
    """Return the file that the settings are in, as an absolute path (None: there is none), its bytes, and warnings.

    The places: `path_option`, $POOLD_CONFIG, ./poold.toml, /etc/poold/poold.toml; one of the first two is final. For root, a
    ./poold.toml that others may write is passed over with a warning. Raise ConfigError if a file is there and cannot be read.
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
    """Return what an operator should know now of a file that is used all the same: who named it has the say."""
    try:
        held, reason = _follow(file.absolute())
    except OSError:
        # It was read a moment ago, and who reads it next will say so.
        return ()
    os.close(held)
    return _cautions(reason)


def _cautions(reason: str) -> tuple[str, ...]:
    return (f"{reason}: whoever writes it decides what poold runs as root",) if reason else ()


def read_file(file: Path) -> bytes:
    """Return a file's bytes. Raises ConfigError when it is no regular file, or larger than settings are."""
    return _read(file)[0]


def _read(file: Path) -> tuple[bytes, str]:
    """Return a file's bytes and, to root, why another user has a say in what they are; "" if none has."""
    try:
        held, reason = _follow(file.absolute())
    except OSError as error:
        raise _unreadable(file, error) from None
    try:
        # Looked at before it is opened: to open a device may set it off, and a FIFO would wait for its writer.
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
    """Follow an absolute path, a name at a time; return a descriptor (O_PATH) of what it leads to and, to root, who else has a say.

    Every folder in which a name was looked up counts, also those that links lead through: whoever may write to one of them may
    change what the path leads to. The reason is of the first of them; "" where only root may. Raises OSError.
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
            # A name that is "/", the first or a link's, begins at the root again, wherever the folder is.
            found = hold(name, held, _HOLD)
            status = os.fstat(found)
            if not stat.S_ISLNK(status.st_mode):
                held, place = found, place / name
                reason = reason or _others(status, place)
                continue
            links += 1
            # Where everybody may write, as to /tmp, anybody may have put it there.
            reason = reason or (f"{place / name} does not belong to root" if status.st_uid != 0 else "")
            if links > LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if status.st_dev == kernels:
                # /dev/stdin and its like: what they lead to is no path but the thing itself, and nobody can put another one there.
                held = hold(name, held, os.O_PATH | os.O_CLOEXEC)
            else:
                names += reversed(Path(os.readlink("", dir_fd=found)).parts)
        assert held is not None
        return os.dup(held), reason if os.geteuid() == 0 else ""


def _others(status: os.stat_result, place: Path) -> str:
    """Say why another user than root may change a file, or what is in a folder; "" if none may."""
    if status.st_uid != 0:
        return f"{place} does not belong to root"
    # In a folder with the sticky bit only the owner of a file can replace it.
    if status.st_mode & 0o022 and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
        return f"others may write to {place}"
    return ""


def file_kind(mode: int) -> str:
    """Return what an operator calls a file of this st_mode."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def _unreadable(file: Path, error: OSError) -> ConfigError:
    return ConfigError([Problem("", f"cannot be read: {(error.strerror or str(error)).lower()}")], str(file))


def control_candidates(environ: Mapping[str, str], uid: int) -> list[Path]:
    """Return the places where the control socket of a poold of this user may be by default, the likeliest first.

    $RUNTIME_DIRECTORY (the first, if it names several), $XDG_RUNTIME_DIR/poold, /run/poold, and a private folder of the user
    under the temporary one ($TMPDIR, else /tmp; nothing is tried out there, as the module tempfile does). That one is left out
    where it is somebody else's: who asks there would be answered by him.
    """
    runtime = Path(environ.get("RUNTIME_DIRECTORY", "").split(":")[0])
    session = Path(environ.get("XDG_RUNTIME_DIR", ""))
    folders = [folder for folder, base in ((runtime, runtime), (session / "poold", session)) if base.is_absolute()]
    temporary = Path(environ.get("TMPDIR", ""))
    private = (temporary if temporary.is_absolute() else TEMPORARY_FOLDER) / f"poold-{uid}"
    folders += [SYSTEM_CONTROL_FOLDER, *([private] if _is_own(private, uid) else [])]
    return [folder / CONTROL_NAME for folder in folders]


def control_path(chosen: str | None, environ: Mapping[str, str], uid: int) -> Path:
    """Return where the daemon binds its control socket: as set, else the first candidate whose folder can be used or made.

    Raise ConfigError if there is none.
    """
    if chosen is not None:
        return Path(chosen)
    candidates = control_candidates(environ, uid)
    for place in candidates:
        if _is_usable(place.parent) and len(os.fsencode(place)) <= UNIX_PATH_MAX:
            return place
    raise ConfigError([Problem("control.socket", f"must be set: none of {', '.join(map(str, candidates))} can be used")])


def make_control_folder(place: Path, uid: int) -> None:
    """Make the folder of a control socket, for its owner alone, unless it is there; raise OSError if that cannot be.

    Where others may make folders too, one that is there is used only if it is the user's own and only he can write to it.
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
    """Say whether a folder is not there yet, or nobody but this user can write to it."""
    try:
        info = folder.lstat()
    except OSError:
        return True
    return stat.S_ISDIR(info.st_mode) and info.st_uid == uid and not info.st_mode & 0o022


def _is_usable(folder: Path) -> bool:
    """Say whether a socket can be made in a folder, there or not yet. A first choice: `make_control_folder` has the last word."""
    try:
        info = folder.stat()
    except FileNotFoundError:
        return os.access(folder.parent, os.W_OK | os.X_OK)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and os.access(folder, os.W_OK | os.X_OK)

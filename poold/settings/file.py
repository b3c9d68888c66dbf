"""The settings file: where it is, and its bytes; and where the control socket is.

It opens one file for reading, which can neither block it nor fill its memory, and changes nothing but, when asked to, the folder of
the control socket. What the bytes mean is `poold.settings.judge`'s.
"""

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from poold.address import UNIX_PATH_MAX
from poold.errors import ConfigError, Problem

FILE_BYTES_MAX = 1 << 20
LOCAL_FILE = Path("poold.toml")
SYSTEM_FILE = Path("/etc/poold/poold.toml")
SYSTEM_CONTROL_FOLDER = Path("/run/poold")
CONTROL_NAME = "control.sock"

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
        text = read_file(Path(named))
        return Path(named).absolute(), text, cautions(Path(named))
    warnings = []
    for file in (LOCAL_FILE, SYSTEM_FILE):
        try:
            file.lstat()
        except (FileNotFoundError, NotADirectoryError):
            # Nothing there: the next place.
            continue
        except OSError as error:
            raise _unreadable(file, error) from None
        if file is LOCAL_FILE and os.geteuid() == 0 and (reason := _written_by_others(file, Path())):
            warnings.append(f"./{file} is passed over because {reason}; name it with -c to use it all the same")
            continue
        text = read_file(file)
        return file.absolute(), text, tuple(warnings)
    return None, b"", tuple(warnings)


def cautions(file: Path) -> tuple[str, ...]:
    """Return what an operator should know of a file that is used all the same: who named it has the say."""
    if os.geteuid() == 0 and (reason := _written_by_others(file)):
        return (f"{reason}: whoever writes it decides what poold runs as root",)
    return ()


def _written_by_others(file: Path, *more: Path) -> str:
    """Say why another user than root could have written a file, or put it there; "" if none could. `more` are places on its way."""
    real = Path(os.path.realpath(file))
    for place in (*more, real.parent, real):
        try:
            info = place.stat()
        except OSError:
            return ""  # a dangling link: reading it will say so
        if info.st_uid != 0:
            return f"{place.absolute()} does not belong to root"
        # In a folder with the sticky bit only the owner of a file can replace it.
        if info.st_mode & 0o022 and not (stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX):
            return f"others may write to {place.absolute()}"
    return ""


def read_file(file: Path) -> bytes:
    """Return a file's bytes. It is opened so that a FIFO does not wait for its writer and a terminal is not taken over."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(file, error) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError([Problem("", f"cannot be read: it is {file_kind(mode)}, not a regular file")], str(file))
        parts = []
        left = FILE_BYTES_MAX + 1
        while left > 0 and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
    except OSError as error:
        raise _unreadable(file, error) from None
    finally:
        os.close(descriptor)
    if left <= 0:
        raise ConfigError([Problem("", f"is too large: settings have at most {FILE_BYTES_MAX >> 20} MiB")], str(file))
    return b"".join(parts)


def file_kind(mode: int) -> str:
    """Return what an operator calls a file of this st_mode."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def _unreadable(file: Path, error: OSError) -> ConfigError:
    return ConfigError([Problem("", f"cannot be read: {(error.strerror or str(error)).lower()}")], str(file))


def control_candidates(environ: Mapping[str, str], uid: int) -> list[Path]:
    """Return the places where the control socket of a poold of this user may be by default, the likeliest first.

    $RUNTIME_DIRECTORY (the first, if it names several), $XDG_RUNTIME_DIR/poold, /run/poold, and a private folder of the user
    under the system's temporary one.
    """
    # Only who looks for a place needs it; the master of an upgrade has one, and newcomers wait for what it loads.
    from tempfile import gettempdir

    runtime = Path(environ.get("RUNTIME_DIRECTORY", "").split(":")[0])
    session = Path(environ.get("XDG_RUNTIME_DIR", ""))
    folders = [folder for folder, base in ((runtime, runtime), (session / "poold", session)) if base.is_absolute()]
    folders += [SYSTEM_CONTROL_FOLDER, Path(gettempdir(), f"poold-{uid}")]
    return [folder / CONTROL_NAME for folder in folders]


def control_path(chosen: str | None, environ: Mapping[str, str], uid: int) -> Path:
    """Return where the daemon binds its control socket: as set, else the first candidate whose folder can be used or made.

    Raise ConfigError if there is none.
    """
    if chosen is not None:
        return Path(chosen)
    candidates = control_candidates(environ, uid)
    private = candidates[-1]
    for place in candidates:
        if _is_usable(place.parent, owner=uid if place is private else None) and len(os.fsencode(place)) <= UNIX_PATH_MAX:
            return place
    raise ConfigError([Problem("control.socket", f"must be set: none of {', '.join(map(str, candidates))} can be used")])


def make_control_folder(place: Path, uid: int) -> None:
    """Make the folder of a control socket, for its owner alone, unless it is there; raise OSError if that cannot be.

    Where others may make folders too, one that is there is used only if it is the user's own and only he can write to it.
    """
    folder = place.parent
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        shared = folder.parent.stat().st_mode & 0o022
        if not _is_usable(folder, owner=uid if shared else None):
            raise PermissionError(errno.EPERM, "belongs to another user, or others may write to it", str(folder)) from None


def _is_usable(folder: Path, *, owner: int | None) -> bool:
    """Say whether a socket can be made in a folder, there or not yet; with `owner`, only if nobody else can write to it."""
    try:
        info = folder.lstat() if owner is not None else folder.stat()
    except FileNotFoundError:
        return os.access(folder.parent, os.W_OK | os.X_OK)
    except OSError:
        return False
    if owner is not None and (info.st_uid != owner or info.st_mode & 0o022):
        return False
    return stat.S_ISDIR(info.st_mode) and os.access(folder, os.W_OK | os.X_OK)

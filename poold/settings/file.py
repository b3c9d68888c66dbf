"""The settings file: find it, read it, judge it; and where the control socket is.

Owns what the command line and the master ask for: `read`, or its parts `find`, `load`, `check` and `resolve`. It must never
apply anything: it opens one file for reading, which can neither block it nor fill its memory, and changes nothing but, when
asked to, the folder of the control socket.

A problem's key is what an operator would write, with positions counted from 1: `pool.max_children`, `listener[2].address`.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from poold.address import UNIX_PATH_MAX
from poold.errors import ConfigError, Problem
from poold.settings import preflight, toml
from poold.settings.lines import Finding, dotted, key_lines, nearest
from poold.settings.schema import Config
from poold.settings.toml import effective

__all__ = [
    "Loaded",
    "check",
    "control_candidates",
    "control_path",
    "effective",
    "find",
    "load",
    "make_control_folder",
    "prepare",
    "read",
    "resolve",
]

FILE_BYTES_MAX = 1 << 20
LOCAL_FILE = Path("poold.toml")
SYSTEM_FILE = Path("/etc/poold/poold.toml")
SYSTEM_CONTROL_FOLDER = Path("/run/poold")
CONTROL_NAME = "control.sock"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings that were found good: the values, the file they come from (None: built in), its bytes, what to warn of."""

    config: Config
    file: Path | None
    text: bytes
    warnings: tuple[str, ...]


def read(path_option: str | None, environ: Mapping[str, str]) -> Loaded:
    """Find the settings file, read it and judge all of it as `prepare` does; raise ConfigError with every problem."""
    file, text, warnings = find(path_option, environ)
    return Loaded(prepare(text, file, environ=environ), file, text, warnings)


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
            raise ConfigError([Problem("", f"cannot be read: it is {preflight.file_kind(mode)}, not a regular file")], str(file))
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


def _unreadable(file: Path, error: OSError) -> ConfigError:
    return ConfigError([Problem("", f"cannot be read: {(error.strerror or str(error)).lower()}")], str(file))


def load(data: bytes, file: Path | None) -> Config:
    """Return the settings that a file's bytes describe; raise ConfigError with every problem, sorted by line.

    Judges only what can be told from the text. Relative paths count from the file's folder; without a file, from the
    working directory. `file` is not read.
    """
    config, findings, source = _judge(data, file)
    return _settled(config, findings, source=source, file=file)


def prepare(data: bytes, file: Path | None, *, environ: Mapping[str, str]) -> Config:
    """Do `load`, `check` and `resolve` in one pass; raise ConfigError with the problems of all three, sorted by line."""
    config, findings, source = _judge(data, file)
    if config is not None:
        config, unresolved = preflight.resolved(config)
        findings = [*findings, *preflight.survey(config, environ), *unresolved]
    return _settled(config, findings, source=source, file=file)


def check(config: Config, environ: Mapping[str, str] | None = None) -> list[Problem]:
    """Return what this machine lacks for the settings: accounts, folders, sockets, programs, interfaces. No lines.

    `environ` is the environment poold runs in, by default that of this process.
    """
    found = preflight.survey(config, os.environ if environ is None else environ)
    return [Problem(dotted(path), message) for path, message in found]


def resolve(config: Config) -> Config:
    """Return the settings with each TCP host as one literal address; raise ConfigError for those that have none."""
    config, unresolved = preflight.resolved(config)
    if unresolved:
        raise ConfigError([Problem(dotted(path), message) for path, message in unresolved])
    return config


def _judge(data: bytes, file: Path | None) -> tuple[Config | None, list[Finding], str]:
    """Return the settings less what is wrong with them (None: too much is), the findings, and the text."""
    parsed = toml.parse(data)
    if isinstance(parsed, Problem):
        raise ConfigError([parsed], str(file) if file else None)
    source, tree = parsed
    config, findings = toml.validate(tree)
    return config and _anchored(config, file), findings, source


def _anchored(config: Config, file: Path | None) -> Config:
    """Return the settings with absolute paths; relative ones count from the file's folder."""
    try:
        folder = file.absolute().parent if file else Path.cwd()
    except FileNotFoundError:  # the working directory was removed
        folder = Path("/")
    server, control = config.server, config.control
    command = server.command
    if command is not None and "/" in command[0]:
        command = (str(folder / command[0]), *command[1:])
    anchored = {
        "path": tuple(str(folder / place) for place in server.path),
        "working_directory": str(folder / server.working_directory),
        "command": command,
    }
    if control.socket is not None:
        control = control.model_copy(update={"socket": str(folder / control.socket)})
    return config.model_copy(update={"server": server.model_copy(update=anchored), "control": control})


def _settled(config: Config | None, findings: Iterable[Finding], *, source: str, file: Path | None) -> Config:
    problems = list(findings)
    if config is not None and not problems:
        return config
    lines = key_lines(source)
    found = [Problem(dotted(path), message, nearest(lines, path)) for path, message in problems]
    raise ConfigError(sorted(found, key=lambda problem: problem.line or 0), str(file) if file else None)


def control_candidates(environ: Mapping[str, str], uid: int) -> list[Path]:
    """Return the places where the control socket of a poold of this user may be by default, the likeliest first.

    $RUNTIME_DIRECTORY (the first, if it names several), $XDG_RUNTIME_DIR/poold, /run/poold, and a private folder of the user
    under the system's temporary one.
    """
    runtime = Path(environ.get("RUNTIME_DIRECTORY", "").split(":")[0])
    session = Path(environ.get("XDG_RUNTIME_DIR", ""))
    folders = [folder for folder, base in ((runtime, runtime), (session / "poold", session)) if base.is_absolute()]
    folders += [SYSTEM_CONTROL_FOLDER, Path(tempfile.gettempdir(), f"poold-{uid}")]
    return [folder / CONTROL_NAME for folder in folders]


def control_path(config: Config, environ: Mapping[str, str], uid: int) -> Path:
    """Return where the daemon binds its control socket: as set, else the first candidate whose folder can be used or made.

    Raise ConfigError if there is none.
    """
    if config.control.socket is not None:
        return Path(config.control.socket)
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

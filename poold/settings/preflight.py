"""What of the settings depends on this machine: accounts, folders, sockets, programs, interfaces, host names.

Owns the questions to the account database, the file system and the resolver. It must never change anything: no file is
made, no socket bound. It asks as the present user, for that is who will bind, chown and switch.

Findings are (path, message) pairs, a path as in `poold.settings.lines`; `poold.settings.file` gives them lines.
"""

import grp
import ipaddress
import os
import pwd
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from poold.address import UNIX_PATH_MAX, Address, Scheme
from poold.settings.fields import shown
from poold.settings.file import file_kind
from poold.settings.lines import Finding, KeyPath
from poold.settings.schema import Config, Listener, Server


def find_user(name: str) -> pwd.struct_passwd | None:
    """Return the account of a name, or of a uid if the name is digits only; None if there is none, never another one."""
    try:
        return pwd.getpwuid(int(name)) if name.isascii() and name.isdigit() else pwd.getpwnam(name)
    except (KeyError, ValueError, OverflowError):
        return None


def find_group(name: str) -> grp.struct_group | None:
    """Return the group of a name, or of a gid if the name is digits only; None if there is none, never another one."""
    try:
        return grp.getgrgid(int(name)) if name.isascii() and name.isdigit() else grp.getgrnam(name)
    except (KeyError, ValueError, OverflowError):
        return None


def survey(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield everything that this machine lacks for the settings; `environ` is the environment poold runs in."""
    yield from _server(config.server, environ)
    for index, listener in enumerate(config.listeners):
        yield from _listener(listener, ("listener", index))
    if config.control.socket is not None:
        yield from _control(config.control.socket)


def _server(server: Server, environ: Mapping[str, str]) -> Iterator[Finding]:
    yield from _identity(server)
    for index, folder in enumerate(server.path):
        yield from _folder(folder, ("server", "path", index))
    yield from _folder(server.working_directory, ("server", "working_directory"))
    if server.command is not None:
        search = server.environment.get("PATH", environ.get("PATH", os.defpath))
        yield from _program(server.command[0], search)


def _identity(server: Server) -> Iterator[Finding]:
    if server.user is not None:
        yield from _user(server.user, ("server", "user"), deed="run children as another user")
    if server.group is not None:
        yield from _group(server.group, ("server", "group"), deed="run children as another group", allowed={os.getegid()})
    groups = [find_group(name) for name in server.groups or ()]
    for index, group in enumerate(groups):
        if group is None:
            yield ("server", "groups", index), "there is no such group"
    if os.geteuid() != 0 and server.groups is not None and all(groups):
        wanted = {group.gr_gid for group in groups if group is not None}
        if wanted != set(os.getgroups()):
            yield ("server", "groups"), "only root can change groups: leave this out, or start poold as root"


def _user(name: str, path: KeyPath, *, deed: str) -> Iterator[Finding]:
    account = find_user(name)
    if account is None:
        yield path, f"there is no such user: {shown(name)}"
    elif os.geteuid() not in (0, account.pw_uid):
        other = "" if account.pw_uid == 0 else f" or as {account.pw_name}"
        yield path, f"only root can {deed}: leave this out, or start poold as root{other}"


def _group(name: str, path: KeyPath, *, deed: str, allowed: set[int]) -> Iterator[Finding]:
    group = find_group(name)
    if group is None:
        yield path, f"there is no such group: {shown(name)}"
    elif os.geteuid() != 0 and group.gr_gid not in allowed:
        yield path, f"only root can {deed}: leave this out, or start poold as root"


def _folder(folder: str, path: KeyPath) -> Iterator[Finding]:
    try:
        mode = Path(folder).stat().st_mode
    except OSError as error:
        yield path, f"the folder {shown(folder)} cannot be used: {_reason(error)}"
    else:
        if not stat.S_ISDIR(mode):
            yield path, f"{shown(folder)} is {file_kind(mode)}, not a folder"


def _program(program: str, search: str) -> Iterator[Finding]:
    path: KeyPath = ("server", "command", 0)
    if "/" in program:
        if not _is_executable(Path(program)):
            yield path, f"{shown(program)} is not a file that can be executed"
    elif not any(_is_executable(Path(folder, program)) for folder in search.split(os.pathsep)):
        yield path, f"there is no program {shown(program)} on the PATH of the children, {search}"


def _is_executable(program: Path) -> bool:
    return program.is_file() and os.access(program, os.X_OK)


def _listener(listener: Listener, path: KeyPath) -> Iterator[Finding]:
    if listener.address.scheme is Scheme.UNIX:
        yield from _socket(listener.address.path, (*path, "address"))
    if listener.owner is not None:
        yield from _user(listener.owner, (*path, "owner"), deed="give a socket away")
    if listener.group is not None:
        yield from _group(listener.group, (*path, "group"), deed="give a socket to this group", allowed={os.getegid(), *os.getgroups()})
    if listener.interface is not None:
        try:
            socket.if_nametoindex(listener.interface)
        except OSError:
            yield (*path, "interface"), f"there is no such interface here: {shown(listener.interface)}"


def _control(place: str) -> Iterator[Finding]:
    path: KeyPath = ("control", "socket")
    size = len(os.fsencode(place))
    if size > UNIX_PATH_MAX:
        yield path, f"the path has {size} bytes; a unix socket's has at most {UNIX_PATH_MAX}"
        return
    yield from _socket(place, path)


def _socket(place: str, path: KeyPath) -> Iterator[Finding]:
    """Yield what would keep poold from binding a unix socket; one that is there already may be stale and is no finding."""
    folder = str(Path(place).parent)
    wrong_folder = list(_folder(folder, path))
    if wrong_folder or not os.access(folder, os.W_OK | os.X_OK):
        yield from wrong_folder or [(path, f"poold may not make a socket in the folder {shown(folder)}")]
        return
    try:
        mode = Path(place).lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        yield path, f"{shown(place)} cannot be used: {_reason(error)}"
        return
    if not stat.S_ISSOCK(mode):
        yield path, f"{shown(place)} exists and is {file_kind(mode)}, not a socket: remove it or choose another path"


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def resolved(config: Config) -> tuple[Config, list[Finding]]:
    """Return the settings with each TCP host as one literal address, the resolver's first, and what could not be resolved.

    May wait for DNS. Names of listeners stay as they are.
    """
    findings: list[Finding] = []

    def literal(address: Address, path: KeyPath) -> Address:
        try:
            return _literal(address)
        except (OSError, ValueError) as error:
            reason = _reason(error) if isinstance(error, OSError) else "it is no host name"
            findings.append((path, f"the host {shown(address.host)} cannot be resolved: {reason}"))
            return address

    listeners = tuple(
        listener.model_copy(update={"address": literal(listener.address, ("listener", index, "address"))})
        for index, listener in enumerate(config.listeners)
    )
    metrics = config.metrics
    if metrics.listen is not None:
        metrics = metrics.model_copy(update={"listen": literal(metrics.listen, ("metrics", "listen"))})
    config = config.model_copy(update={"listeners": listeners, "metrics": metrics})
    return config, findings or list(_collisions(config))


def _literal(address: Address) -> Address:
    if address.scheme is not Scheme.TCP or _is_literal(address.host):
        return address
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return Address(address.scheme, host=str(found[0][4][0]), port=address.port)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _collisions(config: Config) -> Iterator[Finding]:
    """Yield the hosts that turned out to be the same address as another listener's."""
    seen: dict[Address, int] = {}
    for index, listener in enumerate(config.listeners):
        address = listener.address
        if address in seen and address.port:
            yield ("listener", index, "address"), f"is {address}, as listener[{seen[address]}] is already"
        seen.setdefault(address, index + 1)
    metrics = config.metrics.listen
    if metrics is not None and metrics in seen and metrics.port:
        yield ("metrics", "listen"), f"is {metrics}, as listener[{seen[metrics]}] is already"

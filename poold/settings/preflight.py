"""What this machine must have: accounts, folders, sockets, programs, interfaces, host names.

The functions ask the account database, the file system and the resolver. They make no file and bind
no socket. They ask as the present user, because the master binds and changes owners as that user.

A finding is a path (`poold.settings.lines`) and a message; `poold.settings.judge` adds the line.
"""

import grp
import ipaddress
import os
import pwd
import re
import resource
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from poold.address import UNIX_PATH_MAX, Address, Scheme
from poold.settings import descriptors
from poold.settings.config import Config, Listener, Server
from poold.settings.fields import shown
from poold.settings.file import file_kind
from poold.settings.lines import Finding, KeyPath, dotted

CAP_NET_BIND_SERVICE = 10


def find_user(name: str) -> pwd.struct_passwd | None:
    """Return the account of a name, or of a uid in digits; None if there is none."""
    try:
        return pwd.getpwuid(int(name)) if name.isascii() and name.isdigit() else pwd.getpwnam(name)
    except (KeyError, ValueError, OverflowError):
        return None


def find_group(name: str) -> grp.struct_group | None:
    """Return the group of a name, or of a gid in digits; None if there is none."""
    try:
        return grp.getgrgid(int(name)) if name.isascii() and name.isdigit() else grp.getgrnam(name)
    except (KeyError, ValueError, OverflowError):
        return None


def survey(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what this machine lacks for the settings; `environ` is the environment of poold."""
    yield from _server(config.server, environ)
    for index, listener in enumerate(config.listeners):
        yield from _listener(listener, ("listener", index))
    yield from _port(config.metrics.listen, ("metrics", "listen"))
    if config.control.socket is not None:
        yield from _control(config.control.socket)
    yield from _same_files(config)
    short = descriptors.shortage(config, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    if short is not None:
        yield ("pool", short[0]), short[1]


def cautions(config: Config) -> tuple[str, ...]:
    """Return the warnings for good settings."""
    if os.geteuid() != 0 or config.server.user is not None:
        return ()
    what = "handler" if config.server.command is None else "command"
    return (f'the {what} runs as root: name a user under [server], such as user = "nobody", or write user = "root" if that is meant',)


def _server(server: Server, environ: Mapping[str, str]) -> Iterator[Finding]:
    yield from _identity(server)
    for index, folder in enumerate(server.path):
        yield from _folder(folder, ("server", "path", index))
    yield from _folder(server.working_directory, ("server", "working_directory"))
    if server.command is not None:
        search = server.environment.get("PATH", environ.get("PATH", os.defpath))
        yield from _program(server.command[0], search)


def _identity(server: Server) -> Iterator[Finding]:
    if os.geteuid() == 0 and server.user is None and server.group is None and server.groups is None and find_user("nobody") is None:
        yield ("server", "user"), "must be written: there is no user nobody here, whom the exporter would run as otherwise"
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


def _port(address: Address | None, path: KeyPath) -> Iterator[Finding]:
    """Yield a finding if only a privileged process may bind the port, and this process is not one.

    See ip_unprivileged_port_start in ip(7), and capabilities(7).
    """
    if address is not None and 0 < address.port < _first_free_port() and not _has_capability(CAP_NET_BIND_SERVICE):
        yield (
            path,
            f"port {address.port} is for privileged processes: give poold CAP_NET_BIND_SERVICE (AmbientCapabilities=), or another port",
        )


def _first_free_port() -> int:
    """Return the first port that every process may bind."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text(encoding="ascii"))
    except (OSError, ValueError):
        # This /proc does not show the number, so no port is refused before the bind.
        return 0


def _has_capability(number: int) -> bool:
    """Tell whether this process has a capability. A /proc that does not tell counts as yes."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is None or bool(int(found[1], 16) >> number & 1)


def _listener(listener: Listener, path: KeyPath) -> Iterator[Finding]:
    yield from _port(listener.address, (*path, "address"))
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


def _same_files(config: Config) -> Iterator[Finding]:
    """Yield the sockets whose path leads to the file of an earlier socket, as through a link."""
    places: list[tuple[str, KeyPath]] = []
    for index, listener in enumerate(config.listeners):
        if listener.address.scheme is Scheme.UNIX:
            places.append((listener.address.path, ("listener", index, "address")))
    if config.control.socket is not None:
        places.append((config.control.socket, ("control", "socket")))
    seen: dict[str, KeyPath] = {}
    for place, path in places:
        real = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
        if real in seen:
            yield path, f"is the file {shown(real)}, as {dotted(seen[real])} is already"
        seen.setdefault(real, path)


def _control(place: str) -> Iterator[Finding]:
    path: KeyPath = ("control", "socket")
    size = len(os.fsencode(place))
    if size > UNIX_PATH_MAX:
        yield path, f"the path has {size} bytes; a unix socket's has at most {UNIX_PATH_MAX}"
        return
    yield from _socket(place, path)


def _socket(place: str, path: KeyPath) -> Iterator[Finding]:
    """Yield what keeps poold from binding a unix socket. A stale socket in the place does not."""
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
    """Return the settings with the resolver's first address for each TCP host, and the findings.

    The names of listeners stay as they are. The resolver may wait for DNS.
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
        replace(listener, address=literal(listener.address, ("listener", index, "address")))
        for index, listener in enumerate(config.listeners)
    )
    metrics = config.metrics
    if metrics.listen is not None:
        metrics = replace(metrics, listen=literal(metrics.listen, ("metrics", "listen")))
    config = replace(config, listeners=listeners, metrics=metrics)
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
    """Yield the addresses that the kernel refuses to bind beside an earlier one."""
    seen: list[tuple[Address, str | None, KeyPath]] = []
    wanted: list[tuple[Address, str | None, KeyPath]]
    wanted = [(each.address, each.interface, ("listener", index, "address")) for index, each in enumerate(config.listeners)]
    if config.metrics.listen is not None:
        wanted.append((config.metrics.listen, None, ("metrics", "listen")))
    for address, interface, path in wanted:
        if address.scheme is not Scheme.TCP or not address.port:
            continue
        for other, others_interface, place in seen:
            separate = None not in (interface, others_interface) and interface != others_interface
            if not separate and _overlap(address, other):
                same = f"is {address}, as {dotted(place[:-1] if place[0] == 'listener' else place)} is already"
                yield path, same if address == other else f"{address} is taken by {dotted(place)}, which is {other}"
                break
        seen.append((address, interface, path))


def _overlap(one: Address, other: Address) -> bool:
    """Tell whether the kernel lets only one of two addresses listen.

    "::" stands for every address, "0.0.0.0" for every address of IPv4 (ip(7), ipv6(7)).
    """
    if one.port != other.port:
        return False
    first, second = ipaddress.ip_address(one.host), ipaddress.ip_address(other.host)
    if first == second or (first.version == 6 and first.is_unspecified) or (second.version == 6 and second.is_unspecified):
        return True
    return first.version == second.version and (first.is_unspecified or second.is_unspecified)

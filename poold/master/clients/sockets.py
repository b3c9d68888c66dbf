"""Opens listening sockets and checks passed ones. The callers decide which sockets to open.

Every listening socket is non-blocking, because a client may leave between the readiness and the
accept (accept(2)). `poold.master.clients.socketfile` handles the files of unix sockets.
"""

import grp
import os
import pwd
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from poold.address import Address, Scheme
from poold.channel import Wire
from poold.errors import ConfigError, Problem
from poold.log import log
from poold.master.clients import socketfile
from poold.master.clients.socketfile import File, Rights
from poold.master.document.part import check_descriptor
from poold.settings.config import Listener


@dataclass(frozen=True, slots=True)
class SocketPart:
    """A listening socket in the state document.

    `file` is the identity of the socket's own file (device, inode). `lent` says that the service
    manager has passed the socket. Masters of other versions read and write this name.
    """

    fd: int
    path: str = ""
    file: tuple[int, ...] | None = None
    lent: bool = False

    def __post_init__(self) -> None:
        check_descriptor(self.fd)
        if self.file is not None and len(self.file) != 2:
            raise ValueError("a file is told by device and inode")


@dataclass(slots=True)
class Opened:
    """A listening socket.

    `file` is the identity of the file that belongs to the socket (device, inode), or None for no
    file. A socket that is `passed_by_manager` comes from the service manager. poold keeps that
    socket open for later settings, and does not empty its queue.
    """

    socket: socket.socket
    path: str = ""
    file: File | None = None
    passed_by_manager: bool = False

    def reachable(self) -> bool:
        """Say whether clients still find the socket. The file may be gone or replaced."""
        return self.file is None or socketfile.file_in_place(self.path, self.file)

    def save(self) -> SocketPart:
        """Return what the next program must know about the socket."""
        return SocketPart(self.socket.fileno(), self.path, self.file, self.passed_by_manager)

    def close(self) -> None:
        """Close the socket and remove the socket's own file.

        A socket that the service manager has passed stays open. Calling this again changes nothing.
        """
        if self.passed_by_manager:
            return
        if self.file is not None:
            socketfile.remove(self.path, self.file)
            self.file = None
        self.socket.close()


def open_listener(listener: Listener, passed: Mapping[str, list[socket.socket]], *, patience: float = 0.0) -> list[Opened]:
    """Open the sockets of a `[[listener]]`.

    Only a service manager may have passed several sockets for one listener. `patience` is how many
    seconds to wait for another poold that makes the same socket file. Raises ConfigError with the
    address.
    """
    address = listener.address
    try:
        if address.scheme is Scheme.SYSTEMD:
            if reason := not_passed(address, passed):
                raise ValueError(reason)
            opened = [Opened(each, passed_by_manager=True) for each in passed[address.name]]
        elif address.scheme is Scheme.UNIX:
            opened = [_open_unix_listener(listener, patience)]
        else:
            opened = [Opened(_open_tcp_listener(listener))]
    except (OSError, ValueError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError([Problem("listener.address", f"cannot listen on {address}: {reason}")]) from error
    for each in opened:
        each.socket.setblocking(False)
        tune(each, listener)
    return opened


def _open_unix_listener(listener: Listener, patience: float) -> Opened:
    return open_unix(listener.address.path, _rights(listener), backlog=listener.backlog, patience=patience)


def _rights(listener: Listener) -> Rights:
    """Return the rights of a listener's socket file.

    Raises KeyError for an owner or group that does not exist.
    """
    owner, group = listener.owner, listener.group
    uid = -1 if owner is None else int(owner) if owner.isdigit() else pwd.getpwnam(owner).pw_uid
    gid = -1 if group is None else int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    return Rights(listener.mode, uid, gid)


def open_metrics(address: Address) -> Opened:
    """Open the metrics listener. Raises ConfigError with the address."""
    try:
        return Opened(_bound(address.host, address.port, backlog=64))
    except OSError as error:
        raise ConfigError([Problem("metrics.listen", f"cannot listen on {address}: {error.strerror}")]) from error


def open_control(path: str, *, patience: float) -> Opened:
    """Open the control socket. Raises ConfigError with the path."""
    try:
        return open_unix(path, Rights(0o600), backlog=64, patience=patience)
    except OSError as error:
        raise ConfigError([Problem("control.socket", f"cannot listen on {path}: {error.strerror}")]) from error


def address_of(listening: socket.socket) -> str:
    """Return the address at which a socket listens, in the form of the settings."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return str(Address(Scheme.UNIX, path=name if isinstance(name, str) else name.decode("utf-8", "replace")))
    return str(Address(Scheme.TCP, host=name[0], port=name[1]))


def somaxconn() -> int | None:
    """Return the limit to which the kernel cuts every backlog.

    Return None where the kernel does not tell (ProcSubset=pid hides the file).
    """
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        # Without the limit only a warning is left out, so the start goes on.
        return None


def _bound(host: str, port: int, *, backlog: int, freebind: bool = False, interface: str | None = None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # The option is set either way, because the default is the system's (ipv6(7),
            # bindv6only). Only [::] is for IPv4 as well.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        if freebind:
            listening.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND (ip(7)), which the module socket does not name
        if interface is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        listening.bind((host, port))
        listening.listen(backlog)
    except BaseException:
        listening.close()
        raise
    return listening


def _open_tcp_listener(listener: Listener) -> socket.socket:
    address = listener.address
    return _bound(address.host, address.port, backlog=listener.backlog, freebind=listener.freebind, interface=listener.interface)


def tune(opened: Opened, listener: Listener) -> None:
    """Set the options that accepted sockets inherit from their listener (tcp(7)).

    Raises OSError.
    """
    listening = opened.socket
    if listening.family == socket.AF_UNIX:
        return
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, listener.keepalive > 0)
    if listener.keepalive:
        idle = max(1, round(listener.keepalive))
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle // 4))
    milliseconds = max(1, round(listener.user_timeout * 1000)) if listener.user_timeout else 0
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, listener.nodelay)


def retune(opened: Opened, listener: Listener) -> None:
    """Give an open listener other settings for the same address. Raises OSError, KeyError."""
    tune(opened, listener)
    if not opened.passed_by_manager:
        # A second listen() changes the backlog and nothing else (listen(2)).
        opened.socket.listen(listener.backlog)
    if opened.file is not None:
        socketfile.change(opened.path, opened.file, _rights(listener), opened.socket)


def not_passed(address: Address, passed: Mapping[str, list[socket.socket]]) -> str:
    """Return why a `systemd://` address cannot be used: the socket was not passed.

    Return "" where the service manager has passed the socket, and for any other address.
    """
    if address.scheme is not Scheme.SYSTEMD or address.name in passed:
        return ""
    known = ", ".join(sorted(passed)) or "none"
    return f"no socket named {address.name!r} was passed (passed: {known}); name it with FileDescriptorName= in the .socket unit"


def check_passed(name: str, fd: int) -> socket.socket:
    """Check a passed descriptor and return the listening socket.

    Raises ConfigError with the descriptor's number and name (sd_is_socket(3)).
    """

    def unusable(what: str) -> ConfigError:
        return ConfigError([Problem("", f"the passed descriptor {fd} ({name}) {what}; a listening stream socket is needed")])

    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise unusable("is not a socket")
        # Passed descriptors come without close-on-exec, and no child may ever get one.
        os.set_inheritable(fd, False)
    except OSError as error:
        raise unusable(f"cannot be used: {error.strerror}") from error
    passed = socket.socket(fileno=fd)
    if passed.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        passed.detach()
        raise unusable(f"is of family {passed.family}")
    if passed.type != socket.SOCK_STREAM or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        passed.detach()
        raise unusable("does not listen for streams")
    return passed


def open_unix(path: str, rights: Rights, *, backlog: int, patience: float = 0.0) -> Opened:
    """Listen on a socket file of these rights.

    Raises OSError, with EADDRINUSE where another process has a socket bound to the file.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        file = socketfile.make(listening, path, rights, patience=patience)
        listening.listen(backlog)
    except BaseException:
        listening.close()
        raise
    return Opened(listening, path, file)


def restore_socket(name: str, part: SocketPart, passed: Mapping[str, list[socket.socket]]) -> Opened:
    """Return the listening socket that a part names. `name` is the listener's name.

    Raises ConfigError when the descriptor is no listening socket.
    """
    file = None if part.file is None else (part.file[0], part.file[1])
    if part.lent:
        listening = next(each for several in passed.values() for each in several if each.fileno() == part.fd)
    else:
        listening = check_passed(name, part.fd)
    listening.setblocking(False)
    return Opened(listening, part.path, file, part.lent)


def adopt_connection(fd: int) -> Wire | None:
    """Return the client's connection with this descriptor.

    Return None, and log an error, where the descriptor is no connection. No client waits on that
    descriptor then.
    """
    try:
        wire = Wire(fileno=fd)
        if wire.type != socket.SOCK_STREAM or wire.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            wire.detach()
            raise OSError("it is not one")
    except OSError as error:
        log.error("channel_lost", kind="client", error=str(error))
        return None
    return wire

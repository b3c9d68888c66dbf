"""Listening addresses (`Address`) and the ends of a connection (`Endpoint`).

Nothing here uses the network. The check of the settings resolves host names. A peer's address is
the one that accept(2) has returned, because getpeername(2) fails once a client has reset the
connection.
"""

from __future__ import annotations

import socket
import struct
from enum import StrEnum

from poold.plain import AF_UNIX

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    import _socket
    from typing import Any

# sun_path has 108 bytes, and the last one is a terminating zero (unix(7)).
UNIX_PATH_MAX = 107


class Scheme(StrEnum):
    """The kinds of listening address."""

    TCP = "tcp"
    UNIX = "unix"
    SYSTEMD = "systemd"


class Address:
    """A listening address, in one of four forms.

    The forms are `tcp://HOST:PORT`, `tcp://[ADDR6]:PORT`, `unix:///PATH` and `systemd://NAME`.

    `host` is the host as written, without brackets. With `port` 0 the kernel chooses a port. `path`
    is set for unix, `name` for systemd. `str()` returns the address as written.
    """

    __slots__ = ("host", "name", "path", "port", "scheme")

    def __init__(self, scheme: Scheme, *, host: str = "", port: int = 0, path: str = "", name: str = "") -> None:
        self.scheme = scheme
        self.host = host
        self.port = port
        self.path = path
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"Address.parse({str(self)!r})"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address that the text denotes. A ValueError says what would be right."""
        scheme, separator, rest = text.partition("://")
        if not separator or scheme not in set(Scheme):
            raise ValueError(f"{text!r} is not an address; write tcp://HOST:PORT, unix:///PATH or systemd://NAME")
        if scheme == Scheme.UNIX:
            return cls._unix(text, rest)
        if scheme == Scheme.SYSTEMD:
            if not rest or "/" in rest or ":" in rest:
                raise ValueError(f"{text!r} names no socket; write systemd://NAME as in FileDescriptorName=")
            return cls(Scheme.SYSTEMD, name=rest)
        return cls._tcp(text, rest)

    @classmethod
    def _unix(cls, text: str, path: str) -> Address:
        if not path.startswith("/"):
            raise ValueError(f"{text!r} has no absolute path; write unix:///PATH with three slashes")
        if "\0" in path:
            raise ValueError(f"{text!r} has a zero byte in its path")
        if len(path.encode()) > UNIX_PATH_MAX:
            raise ValueError(f"the path of {text!r} has {len(path.encode())} bytes; a unix socket's has at most {UNIX_PATH_MAX}")
        return cls(Scheme.UNIX, path=path)

    @classmethod
    def _tcp(cls, text: str, rest: str) -> Address:
        if rest.startswith("["):
            host, bracket, port_text = rest[1:].partition("]")
            if not bracket or not port_text.startswith(":"):
                raise ValueError(f"{text!r} is not tcp://[ADDR6]:PORT")
            try:
                socket.inet_pton(socket.AF_INET6, host)
            except OSError:
                raise ValueError(f"{host!r} is not an IPv6 address; brackets are for IPv6 only") from None
            port_text = port_text[1:]
        else:
            host, colon, port_text = rest.rpartition(":")
            if not colon:
                raise ValueError(f"{text!r} has no port; write tcp://{rest or 'HOST'}:PORT")
            if ":" in host:
                raise ValueError(f"an IPv6 address needs brackets: tcp://[{host}]:{port_text}")
        if host in ("", "*"):
            raise ValueError(f"{text!r} names no host; write tcp://[::]:PORT for every address, or tcp://0.0.0.0:PORT for IPv4 only")
        if not port_text.isascii() or not port_text.isdigit() or len(port_text) > 5 or int(port_text) > 65535:
            raise ValueError(f"{port_text!r} is not a port; write a number from 0 to 65535")
        return cls(Scheme.TCP, host=host, port=int(port_text))

    def __str__(self) -> str:
        if self.scheme is Scheme.UNIX:
            return f"unix://{self.path}"
        if self.scheme is Scheme.SYSTEMD:
            return f"systemd://{self.name}"
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


def unmapped(host: str) -> str:
    """Return the IPv4 form of an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2), else the host."""
    if host.startswith("::ffff:") and "." in host:
        return host[7:]
    return host


class Endpoint:
    """One end of a connection.

    For TCP, `host` and `port` are set. An IPv4-mapped address has its IPv4 form. For a unix socket,
    `path` is set, and is "" for a client without a name. Of a unix peer the kernel tells `pid`,
    `uid` and `gid`. `raw` is the address in the form of the socket module.
    """

    __slots__ = ("family", "gid", "host", "path", "pid", "port", "raw", "uid")

    def __init__(  # noqa: PLR0917 -- keywords would cost each worker a dictionary
        self, family: int, raw: Any, host: str = "", port: int = 0, path: str = "", pid: int = 0, uid: int = -1, gid: int = -1
    ) -> None:
        self.family = family
        self.raw = raw
        self.host = host
        self.port = port
        self.path = path
        self.pid = pid
        self.uid = uid
        self.gid = gid

    @classmethod
    def of(cls, family: int, raw: Any) -> Endpoint:
        """Describe an address of this family, in the form of accept() and getsockname()."""
        if family == AF_UNIX:
            path = raw.decode(errors="surrogateescape") if isinstance(raw, bytes) else raw
            return cls(family, path=path or "", raw=raw)
        return cls(family, raw, unmapped(raw[0]), raw[1])

    @classmethod
    def unix_peer(cls, connection: _socket.socket) -> Endpoint:
        """Describe the client of a unix socket by its credentials (SO_PEERCRED, unix(7)).

        The credentials are those of the moment when the client connected.
        """
        pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return cls(AF_UNIX, pid=pid, uid=uid, gid=gid, raw="")

    def __str__(self) -> str:
        if self.family == AF_UNIX:
            return f"unix:{self.path}" if self.path else f"unix:uid={self.uid},pid={self.pid}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

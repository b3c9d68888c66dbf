"""Where poold listens (`Address`) and who is at the two ends of a connection (`Endpoint`).

Neither touches the network: a host name is resolved where the settings are checked, and a peer's address is the one that
accept() returned, because getpeername() fails once a client has reset the connection.
"""

from __future__ import annotations

import socket
import struct
from enum import StrEnum

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    import _socket
    from typing import Any

_AF_UNIX = int(socket.AF_UNIX)
# sun_path holds 108 bytes, the last one a terminating zero (unix(7)).
UNIX_PATH_MAX = 107


class Scheme(StrEnum):
    """The kinds of listening address."""

    TCP = "tcp"
    UNIX = "unix"
    SYSTEMD = "systemd"


class Address:
    """A listening address: `tcp://HOST:PORT`, `tcp://[ADDR6]:PORT`, `unix:///PATH` or `systemd://NAME`.

    `host` is the host as written, without brackets; `port` 0 lets the kernel choose. `path` is set for unix, `name` for
    systemd. `str()` gives the form it is written in.
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
        """Read an address as written in the settings; raise ValueError that says what would be right."""
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
    """Return the IPv4 form of an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2), any other host as it is."""
    if host.startswith("::ffff:") and "." in host:
        return host[7:]
    return host


class Endpoint:
    """One end of a connection.

    TCP: `host` (IPv4-mapped addresses as IPv4) and `port`. Unix: `path` (of our end; "" for a client without a name) and,
    of a peer, the kernel's word for its `pid`, `uid` and `gid`. `raw` is what the socket module calls the address.
    """

    __slots__ = ("family", "gid", "host", "path", "pid", "port", "raw", "uid")

    def __init__(  # noqa: PLR0917 -- a call with keywords makes a dictionary of them, in each worker
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
        """Describe the address `raw` of a socket of this family, as accept() and getsockname() return it."""
        if family == _AF_UNIX:
            path = raw.decode(errors="surrogateescape") if isinstance(raw, bytes) else raw
            return cls(family, path=path or "", raw=raw)
        return cls(family, raw, unmapped(raw[0]), raw[1])

    @classmethod
    def unix_peer(cls, connection: _socket.socket) -> Endpoint:
        """Describe the client of a unix socket by the credentials it had when it connected (SO_PEERCRED, unix(7))."""
        pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return cls(_AF_UNIX, pid=pid, uid=uid, gid=gid, raw="")

    def __str__(self) -> str:
        if self.family == _AF_UNIX:
            return f"unix:{self.path}" if self.path else f"unix:uid={self.uid},pid={self.pid}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

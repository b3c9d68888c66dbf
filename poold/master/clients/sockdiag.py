"""Asks the kernel about unix sockets (sock_diag(7)) what no socket option tells: how full a queue is, and which file is a socket's own."""

import os
import socket
import struct

NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_UDIAG_SHOW_VFS = 0x02
_UDIAG_SHOW_RQLEN = 0x10
_UNIX_DIAG_VFS = 1
_UNIX_DIAG_RQLEN = 4

_HEADER = struct.Struct("=IHHII")
# family, protocol, pad, states, inode, what to show, cookie (all ones: any)
_UNIX_REQUEST = struct.Struct("=BBHIIIII")
_UNIX_ANSWER = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")
_PAIR = struct.Struct("=II")
_ANY = 0xFFFFFFFF


def unix_queue_length(listening: socket.socket) -> tuple[int, int] | None:
    """Return how many connections wait at a unix listener and how many may; None where the kernel does not say."""
    return read_pair(_ask(listening, _UDIAG_SHOW_RQLEN), _UNIX_DIAG_RQLEN)


def unix_file(bound: socket.socket) -> int | None:
    """Return the inode number of the file that a unix socket is bound to, its low 32 bits; None where the kernel does not say.

    The kernel tells a device too, but that of the mount, which on btrfs and some overlays is not the one that stat(2) tells.
    """
    found = read_pair(_ask(bound, _UDIAG_SHOW_VFS), _UNIX_DIAG_VFS)
    return None if found is None else found[0]


def _ask(about: socket.socket, show: int) -> bytes:
    """Return the kernel's answer, b"" where there is none."""
    inode = os.fstat(about.fileno()).st_ino & 0xFFFFFFFF
    body = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, inode, show, _ANY, _ANY)
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
            netlink.setblocking(False)
            netlink.send(header + body)
            return netlink.recv(4096)
    except OSError:
        # No netlink here (RestrictAddressFamilies=), or no unix_diag in this kernel.
        return b""


def read_pair(answer: bytes, kind: int) -> tuple[int, int] | None:
    """Return the two numbers of an attribute of this kind, None where the answer has none."""
    if len(answer) < _HEADER.size or _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    at = _HEADER.size + _UNIX_ANSWER.size
    while at + _ATTRIBUTE.size <= len(answer):
        length, found = _ATTRIBUTE.unpack_from(answer, at)
        if found == kind and length >= _ATTRIBUTE.size + _PAIR.size:
            first, second = _PAIR.unpack_from(answer, at + _ATTRIBUTE.size)
            return first, second
        at += max(_ATTRIBUTE.size, length + 3 & ~3)
    return None


def queue_length(listening: socket.socket) -> tuple[int, int] | None:
    """Return how many connections wait for accept, and how many may (Linux: tcpi_unacked and tcpi_sacked of a TCP listener)."""
    if listening.family == socket.AF_UNIX:
        return unix_queue_length(listening)
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    # struct tcp_info: eight bytes, then rto, ato, snd_mss, rcv_mss, unacked, sacked.
    depth, limit = struct.unpack_from("II", info, 24)
    return depth, limit

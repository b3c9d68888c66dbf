"""Asks the kernel how full a listener's queue is, and which file a unix socket is bound to.

No socket option tells these of a unix socket, but sock_diag(7) does.
"""

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
    """Return how many connections wait at a unix listener, and how many may wait.

    Return None where the kernel does not tell.
    """
    return read_pair(_ask(listening, _UDIAG_SHOW_RQLEN), _UNIX_DIAG_RQLEN)


def unix_file(bound: socket.socket) -> int | None:
    """Return the low 32 bits of the inode number of the file to which a unix socket is bound.

    Return None where the kernel does not tell. The device that the kernel tells is that of the
    mount. On btrfs and some overlays, stat(2) tells another device, so the device is not used.
    """
    found = read_pair(_ask(bound, _UDIAG_SHOW_VFS), _UNIX_DIAG_VFS)
    return None if found is None else found[0]


def _ask(about: socket.socket, show: int) -> bytes:
    """Return the kernel's answer, or b"" where there is none."""
    inode = os.fstat(about.fileno()).st_ino & 0xFFFFFFFF
    body = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, inode, show, _ANY, _ANY)
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
            netlink.setblocking(False)
            netlink.send(header + body)
            return netlink.recv(4096)
    except OSError:
        # This process may not use netlink (RestrictAddressFamilies=), or this kernel has no
        # unix_diag.
        return b""


def read_pair(answer: bytes, kind: int) -> tuple[int, int] | None:
    """Return the two numbers of an attribute of this kind, or None for no such attribute."""
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
    """Return how many connections wait for accept, and how many may wait.

    For a TCP listener Linux tells these in tcpi_unacked and tcpi_sacked.
    """
    if listening.family == socket.AF_UNIX:
        return unix_queue_length(listening)
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    # struct tcp_info: eight bytes, then rto, ato, snd_mss, rcv_mss, unacked, sacked.
    depth, limit = struct.unpack_from("II", info, 24)
    return depth, limit

"""Asks the kernel about sockets (sock_diag(7)): how full a unix listener's queue is, which no socket option tells."""

import os
import socket
import struct

NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_UDIAG_SHOW_RQLEN = 0x10
_UNIX_DIAG_RQLEN = 4

_HEADER = struct.Struct("=IHHII")
# family, protocol, pad, states, inode, what to show, cookie (all ones: any)
_UNIX_REQUEST = struct.Struct("=BBHIIIII")
_UNIX_ANSWER = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")
_ANY = 0xFFFFFFFF


def unix_queue(listening: socket.socket) -> tuple[int, int] | None:
    """Return how many connections wait at a unix listener and how many may; None where the kernel does not say."""
    inode = os.fstat(listening.fileno()).st_ino & 0xFFFFFFFF
    body = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, inode, _UDIAG_SHOW_RQLEN, _ANY, _ANY)
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
            netlink.setblocking(False)
            netlink.send(header + body)
            answer = netlink.recv(4096)
    except OSError:
        # No netlink here (RestrictAddressFamilies=), or no unix_diag in this kernel: the gauge is left out.
        return None
    return _queue(answer)


def _queue(answer: bytes) -> tuple[int, int] | None:
    if len(answer) < _HEADER.size or _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    at = _HEADER.size + _UNIX_ANSWER.size
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _UNIX_DIAG_RQLEN and length >= _ATTRIBUTE.size + 8:
            depth, limit = struct.unpack_from("=II", answer, at + _ATTRIBUTE.size)
            return depth, limit
        at += max(_ATTRIBUTE.size, length + 3 & ~3)
    return None

"""The control wire: one JSON object a line up, one down, over a unix socket; descriptors may come with the answer.

Request   {"verb": "view"}                      at most `REQUEST_MAX` bytes
Answer    {"ok": true, …} or {"ok": false, "error": "…"}

`view` is answered with the daemon's state and read-only descriptors of the counters and the table, so that a table of thousands costs
the master nothing: the client reads it. With `"statuses": true`, a third one comes along: JSON, what each session says, by session.
"""

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

REQUEST_MAX = 4096
ANSWER_MAX = 1 << 20
FDS_MAX = 3


class UnreachableError(Exception):
    """No daemon answers; says which places were tried."""


def call(places: list[Path], request: dict[str, Any], *, timeout: float) -> tuple[dict[str, Any], list[int]]:
    """Ask the first daemon that listens in one of these places; return its answer and the descriptors, which the caller closes.

    Raises UnreachableError.
    """
    tried: list[str] = []
    for place in places:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            try:
                connection.connect(str(place))
                connection.sendall(json.dumps(request).encode() + b"\n")
                return _answer(connection)
            except (OSError, ValueError) as error:
                tried.append(f"{place}: {getattr(error, 'strerror', None) or error}")
    raise UnreachableError("; ".join(tried))


def _answer(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data = b""
    fds: list[int] = []
    while not data.endswith(b"\n"):
        chunk, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.extend(struct.unpack(f"{len(payload) // 4}i", payload))
        if not chunk or len(data) > ANSWER_MAX:
            for fd in fds:
                os.close(fd)
            raise ValueError("the daemon closed the connection without an answer")
        data += chunk
    answer: dict[str, Any] = json.loads(data)
    return answer, fds

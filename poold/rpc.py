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
import time
from pathlib import Path
from typing import Any

REQUEST_MAX = 4096
ANSWER_MAX = 1 << 20
FDS_MAX = 3


class UnreachableError(Exception):
    """No daemon answers; says which places were tried."""


def call(places: list[Path], request: dict[str, Any], *, timeout: float) -> tuple[dict[str, Any], list[int]]:
    """Ask the first daemon that listens in one of these places; return its answer and the descriptors, which the caller closes.

    The answer is whole and has come within `timeout` seconds. Raises UnreachableError.
    """
    tried: list[str] = []
    for place in places:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            until = time.monotonic() + timeout
            try:
                connection.connect(str(place))
                connection.sendall(json.dumps(request).encode() + b"\n")
                return _answer(connection, until)
            except (OSError, ValueError, RecursionError) as error:
                tried.append(f"{place}: {getattr(error, 'strerror', None) or error}")
    raise UnreachableError("; ".join(tried))


def _answer(connection: socket.socket, until: float) -> tuple[dict[str, Any], list[int]]:
    fds: list[int] = []
    try:
        answer = json.loads(_line(connection, until, fds))
        if not isinstance(answer, dict) or "ok" not in answer:
            raise ValueError("what answers is no daemon of poold's")
        return answer, fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _line(connection: socket.socket, until: float, fds: list[int]) -> bytearray:
    """Return everything up to the first line's end; its descriptors go into `fds`. Raises OSError, ValueError."""
    data = bytearray()
    while not data.endswith(b"\n"):
        connection.settimeout(max(0.001, until - time.monotonic()))
        chunk, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.extend(struct.unpack(f"{len(payload) // 4}i", payload))
        data += chunk
        if len(data) > ANSWER_MAX or len(fds) > FDS_MAX:
            raise ValueError("the answer is longer than a daemon's")
        if not chunk:
            raise ValueError("the daemon closed the connection without a whole answer")
    return data

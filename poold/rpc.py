"""The messages between the command line and the master: one JSON object a line, over a unix socket.

Descriptors may come with the answer.

Request   {"verb": "view"}                      at most `REQUEST_MAX` bytes
Answer    {"ok": true, …} or {"ok": false, "error": "…"}

The answer to `view` has the daemon's state, and read-only descriptors of counters and table. The
client reads the table itself, so that a table of thousands costs the master nothing. With
`"statuses": true` a third descriptor comes along: the status text of each session, as JSON.
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
    """No daemon answers. The message lists the sockets that were tried."""


def call(socket_paths: list[Path], request: dict[str, Any], *, timeout: float) -> tuple[dict[str, Any], list[int]]:
    """Send a request to the first daemon that listens at one of these sockets.

    Return the answer and its descriptors, which the caller closes. The whole answer must come
    within `timeout` seconds. Raises UnreachableError.
    """
    tried: list[str] = []
    for path in socket_paths:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            deadline = time.monotonic() + timeout
            try:
                connection.connect(str(path))
                connection.sendall(json.dumps(request).encode() + b"\n")
                return _read_answer(connection, deadline)
            except (OSError, ValueError, RecursionError) as error:
                tried.append(f"{path}: {getattr(error, 'strerror', None) or error}")
    raise UnreachableError("; ".join(tried))


def _read_answer(connection: socket.socket, deadline: float) -> tuple[dict[str, Any], list[int]]:
    fds: list[int] = []
    try:
        answer = json.loads(_read_line(connection, deadline, fds))
        if not isinstance(answer, dict) or "ok" not in answer:
            raise ValueError("what answers is no daemon of poold's")
        return answer, fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _read_line(connection: socket.socket, deadline: float, fds: list[int]) -> bytearray:
    """Return the first line, and add its descriptors to `fds`. Raises OSError, ValueError."""
    data = bytearray()
    while not data.endswith(b"\n"):
        connection.settimeout(max(0.001, deadline - time.monotonic()))
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

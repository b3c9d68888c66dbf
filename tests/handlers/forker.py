"""A handler whose import leaves a thread running: the mold must clone it by forking twice."""

import json
import os
import threading
from pathlib import Path

from poold import Connection

threading.Thread(target=threading.Event().wait, daemon=True).start()


def serve(connection: Connection) -> None:
    """Say who serves."""
    facts = {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "tid": threading.get_native_id(),
        "tasks": len(list(Path("/proc/self/task").iterdir())),
    }
    connection.socket.sendall(json.dumps(facts).encode() + b"\n")
    connection.reader.read()

"""A handler whose import does what the file `mood` in its folder of options says; there, molds can be told to misbehave later."""

import os
import signal
import sys
import time
from pathlib import Path

from poold import Connection

MOOD = Path(os.environ["MOOD"])

match MOOD.read_text().strip() if MOOD.exists() else "good":
    case "raise":
        raise RuntimeError("not in the mood")
    case "exit":
        sys.exit(0)
    case "_exit":
        os._exit(0)
    case "wait":
        while MOOD.read_text() == "wait":
            time.sleep(0.005)
    case "hang":
        time.sleep(3600)
    case "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        MOOD.with_name(str(os.getpid())).touch()
        time.sleep(3600)
    case "spawn":
        # A process that nobody asked for: a child of this one, and a child of the master's by falling to it.
        if os.fork() == 0:
            if os.fork() == 0:
                time.sleep(0.2)
            os._exit(0)
        os.wait()
    case "fork":
        os.fork()
    case "signals":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def serve(connection: Connection) -> None:
    """Echo lines with the worker's pid."""
    for line in connection.reader:
        connection.socket.sendall(f"{os.getpid()} ".encode() + line)

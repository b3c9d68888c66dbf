"""A handler that is imported in each worker (preload = false), and there does what two files in $FOLDER say.

`mood` is looked at during the import: `exit N` ends the worker, `hang` never returns, once. PID.fifo takes one order for a thread that
stays behind in the spare: `exit N`, `shut`, `tell HEX`.
"""

import os
import signal
import socket
import sys
import threading
from pathlib import Path

from cases import serve
from faults import channels

__all__ = ["serve"]

FOLDER = Path(os.environ["FOLDER"])


def mood() -> str:
    """Return what the import is asked to do."""
    try:
        return (FOLDER / "mood").read_text()
    except FileNotFoundError:
        return ""


def obey(fifo: Path) -> None:
    """Carry out the order that comes."""
    word, _, argument = fifo.read_text().partition(" ")
    if word == "exit":
        os._exit(int(argument))
    for channel in channels():
        if word == "shut":
            channel.shutdown(socket.SHUT_RDWR)
        else:
            channel.send(bytes.fromhex(argument))


match mood().split():
    case ["exit", code]:
        os._exit(int(code))
    case ["sysexit", code]:
        sys.exit(int(code))
    case ["raise"]:
        raise RuntimeError("not in the mood")
    case ["hang"]:
        # Once; the next one is to live.
        (FOLDER / "mood").unlink()
        while True:
            signal.pause()

ORDERS = FOLDER / f"{os.getpid()}.fifo"
os.mkfifo(ORDERS)
threading.Thread(target=obey, args=(ORDERS,), daemon=True).start()

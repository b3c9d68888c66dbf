"""A handler whose import leaves hooks that run at each clone, as libraries do that must know of a fork.

What they do is in $FOLDER: `child` and `parent` say which hook does what: `hang`, `exit`, `tell`, `full`.
"""

import os
import resource
import signal
from pathlib import Path

from cases import serve
from faults import channels

__all__ = ["serve"]

FOLDER = Path(os.environ["FOLDER"])


def hook(place: str) -> None:
    """Do what the file says, in the new worker (`child`) or in the mold (`parent`)."""
    try:
        word = (FOLDER / place).read_text()
    except FileNotFoundError:
        return
    if word == "exit":
        os._exit(7)
    if word == "tell":
        for channel in channels():
            channel.send(b"nonsense")
            channel.close()
    if word == "full":
        # What is open stays open; nothing can be added.
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if word == "hang":
        # Once; the next one is to live.
        (FOLDER / place).unlink()
        while True:
            signal.pause()


os.register_at_fork(after_in_child=lambda: hook("child"), after_in_parent=lambda: hook("parent"))

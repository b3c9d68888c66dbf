"""The guard of an upgrade: a process that kills the master if the program that takes its place does not come as far as its loop.

What hangs there may hang before Python runs its first line, so only another process can tell; a timer of its own ends in a signal that
anybody may send, and a stray one would end every session. The guard is started beside the new mold and says "ready"; the master says
"watch" and becomes the other program, which has the other end of the channel: when that is closed, nothing is left to guard.

    (started) ── READY ─▶   ◀─ WATCH ── [execve] ── EOF ─▶ leave, or after `SECONDS`: kill
"""

import json
import os
import select
import signal
import socket
import sys

from poold import arguments, sandbox
from poold.log import log
from poold.title import set_title

READY = b"ready"
WATCH = b"watch"
# How long the new program may take until its loop turns.
SECONDS = 20
_DOCUMENT_MAX = 4096


def main() -> None:
    """Wait for the word, then for the end of the channel."""
    sandbox.forbid_inspection()
    fds = arguments.read(sys.argv[1:])
    set_title("guard")
    settings = json.loads(os.pread(fds["settings"], _DOCUMENT_MAX, 0))
    master = settings["master"]
    sandbox.kill_with_parent(master)
    framed = settings["log_framed"]
    log.configure(format=settings["log_format"], level=settings["log_level"], journal=settings["log_journal"], framed=framed)
    channel = socket.socket(fileno=fds["channel"])
    channel.send(READY)
    if channel.recv(len(WATCH)) != WATCH or ends_in_time(channel):
        return
    log.error("upgrade_hangs", seconds=SECONDS)
    # The pid is the parent's as long as there is this process: it would have been killed with it.
    os.kill(master, signal.SIGKILL)


def ends_in_time(channel: socket.socket) -> bool:
    """Say whether the channel ends in time.

    The time is counted in seconds that this process has run through: one in which the machine stood still counts once, however long.
    """
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return any(poll.poll(1000) for _ in range(SECONDS))

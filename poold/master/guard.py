"""The guard of an upgrade: a process that kills the master if the new program hangs.

The new program may hang before Python runs the first line, so only another process can notice. A
timer in the program itself would send a signal. Any process of the same user may send such a
signal, and a stray one would end every session.

The master starts the guard beside the new mold. The guard sends READY. The master sends WATCH, and
becomes the new program, which has the other end of the channel. The new program closes that end
once its loop turns, and the guard leaves.

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
# Seconds in which the new program's loop must turn.
SECONDS = 20
_DOCUMENT_MAX = 4096


def main() -> None:
    """Wait for WATCH, then for the end of the channel."""
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
    # The pid still belongs to the master: the kernel would have killed the guard with the master.
    os.kill(master, signal.SIGKILL)


def ends_in_time(channel: socket.socket) -> bool:
    """Return whether the channel ends in time.

    Only seconds in which this process runs are counted. If the machine stands still, the whole
    pause counts as one second.
    """
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return any(poll.poll(1000) for _ in range(SECONDS))

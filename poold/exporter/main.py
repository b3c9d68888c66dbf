"""The exporter's process: takes what the master gives it, becomes the helper user, and answers until the master is gone.

EOF on the lifeline asks it to leave; it does not outlive the master. It ends by itself when it is of no use: another one is started.
"""

import asyncio
import json
import os
import resource
import signal
import socket
import sys
from typing import Any

from poold import arguments, sandbox, stream
from poold.exporter.lifeline import Lifeline
from poold.exporter.reception import Reception
from poold.exporter.site import Site
from poold.log import log, trace
from poold.scoreboard import CountersView
from poold.title import set_title

# How long exchanges that have begun may take when the master asks this process to leave.
GOODBYE_SECONDS = 1.0


async def answer(view: CountersView, end: socket.socket, listener: socket.socket) -> int:
    """Answer until the end of the lifeline; return the exit status."""
    loop = asyncio.get_running_loop()
    lifeline = Lifeline(end)
    reception = Reception(listener, Site(view, lifeline))

    def fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End after an error of our own in a callback, where nobody can tell what it has left undone."""
        error = context.get("exception")
        log.error("scrape_failed", error=context["message"], traceback=trace(error) if error is not None else None)
        reception.give_up()

    loop.set_exception_handler(fault)
    # What a crowd is the reason for is said in few lines; how many more there were, when it is over.
    log.later = loop.call_later
    # The first question tells the master that scrapes are answered from now on.
    lifeline.ask()
    await asyncio.wait((lifeline.ended, reception.broken), return_when=asyncio.FIRST_COMPLETED)
    await reception.finish(GOODBYE_SECONDS)
    return 1 if reception.broken.done() else 0


def main() -> None:
    """Run an exporter until the master is gone."""
    sandbox.forbid_inspection()
    fds = arguments.read(sys.argv[1:])
    for fd in fds.values():
        os.set_inheritable(fd, False)
    set_title("exporter")
    with open(fds["settings"], "rb") as file:
        settings = json.loads(file.read())
    stream.install()
    framed = settings.get("log_framed", False)
    form = "raw" if framed else settings["log_format"]
    log.configure(format=form, level=settings["log_level"], journal=settings["log_journal"], framed=framed)
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(settings["nofile"]))
    view = CountersView(fds["counters"])
    os.close(fds["counters"])
    sandbox.become_identity(settings["identity"])
    sandbox.kill_with_parent(settings.get("master"))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end, listener = socket.socket(fileno=fds["lifeline"]), socket.socket(fileno=fds["listener"])
    end.setblocking(False)
    listener.setblocking(False)
    status = asyncio.run(answer(view, end, listener))
    log.tell_held_back(all=True)
    os._exit(status)

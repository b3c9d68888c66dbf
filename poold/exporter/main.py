"""Runs the exporter's process, from its descriptors to its end.

The exporter becomes the helper user first, and then answers scrapers.

EOF on the lifeline asks the exporter to leave. The exporter does not outlive the master. An
exporter that can answer no scraper ends by itself, and the master starts another one.
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

# Seconds that exchanges have left when the master asks this process to leave.
GOODBYE_SECONDS = 1.0


async def answer_scrapers(view: CountersView, end: socket.socket, listener: socket.socket) -> int:
    """Answer scrapers until the end of the lifeline; return the exit status."""
    loop = asyncio.get_running_loop()
    lifeline = Lifeline(end)
    reception = Reception(listener, Site(view, lifeline))

    def fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End the process after a fault in a callback, because the callback may be half done."""
        error = context.get("exception")
        log.error("scrape_failed", error=context["message"], traceback=trace(error) if error is not None else None)
        reception.give_up()

    loop.set_exception_handler(fault)
    # The log limits the lines that a crowd causes, and tells their number when the crowd is over.
    log.use_timer(loop.call_later)
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
    status = asyncio.run(answer_scrapers(view, end, listener))
    log.tell_held_back(all=True)
    os._exit(status)

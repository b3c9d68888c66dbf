"""Answers scrapers over HTTP, a few at a time, and never waits long for anybody.

It asks the master on the lifeline before it answers, waits a moment, and answers from what was published last if there is no
reply: a master that is busy or stopped is still measured. EOF on the lifeline asks it to leave; it does not outlive the master.

    /metrics   everything; /healthz   200 while the master's loop turns; /readyz   200 while it accepts, or has within 5 s
"""

import io
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

from prometheus_client import CollectorRegistry, exposition

from poold import __version__, sandbox, stream
from poold import scoreboard as board
from poold.exporter.collector import PooldCollector
from poold.log import log
from poold.scoreboard import CountersView
from poold.title import set_title

# How long a scrape waits for the master's word, and a health check for its pulse.
FRESH_SECONDS = 0.25
HEALTH_SECONDS = 2.0
NOT_READY_AFTER = 5.0
# One scraper's whole request and answer; more scrapers than this at once are turned away.
REQUEST_SECONDS = 5.0
CLIENTS_MAX = 16
# How long scrapes that have begun may take when the master asks this process to leave.
GOODBYE_SECONDS = 1.0
REQUEST_MAX = 8192
BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Lifeline:
    """Asks the master whether its loop turns; one question serves all who ask meanwhile."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._condition = threading.Condition()
        self._asked = 0
        self._answered = 0

    def ask(self, seconds: float) -> bool:
        """Ask now; say whether the master answered in time. What it publishes is then of a moment after the question."""
        with self._condition:
            if self._asked - self._answered < 64:
                self._asked += 1
                try:
                    self._end.send(b"?", socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
                except OSError:
                    # The master is gone, and this process about to be; or it does not read, which is an answer too.
                    self._asked -= 1
                    return False
            mine = self._asked
            return self._condition.wait_for(lambda: self._answered >= mine, seconds)

    def listen(self) -> None:
        """Take answers until the master is gone."""
        while answers := self._receive():
            with self._condition:
                self._answered += len(answers)
                self._condition.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._end.recv(4096)
        except ConnectionResetError:
            # The master has gone with a question unread: an end all the same.
            return b""


class Exporter:
    """What the requests are answered from."""

    def __init__(self, view: CountersView, lifeline: Lifeline) -> None:
        self.view = view
        self.lifeline = lifeline
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(PooldCollector(view))
        self._places = threading.BoundedSemaphore(CLIENTS_MAX)
        # Held while a scraper is let in. Once this process leaves, who comes is the next exporter's.
        self._door = threading.Lock()
        self._leaving = False

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type, in the format that an Accept header asks for."""
        self.lifeline.ask(FRESH_SECONDS)
        encode, content_type = exposition.choose_encoder(accept)
        return encode(self._registry), content_type

    def ready(self) -> bool:
        """Say whether new clients are let in."""
        self.lifeline.ask(FRESH_SECONDS)
        cells = self.view.read()
        if cells[board.DRAINING]:
            return False
        if cells[board.ACCEPTING]:
            return True
        since = cells[board.NOT_ACCEPTING_SINCE] / 1e6
        return since > 0 and time.monotonic() - since < NOT_READY_AFTER

    def serve(self, listener: socket.socket) -> None:
        """Answer scrapers for ever, each in a thread, a few at a time."""
        readable = select.poll()
        readable.register(listener, select.POLLIN)
        while True:
            readable.poll()
            try:
                with self._door:
                    if self._leaving:
                        return
                    self._take(listener)
            except BlockingIOError:
                # Somebody else was faster.
                continue
            except OSError as error:
                log.warning("accept_error", listener="metrics", error=error.strerror)
                time.sleep(0.1)  # this process has nothing else to do, and no descriptor to do it with

    def _take(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        if not self._places.acquire(blocking=False):
            _turn_away(client)
            return
        # A deadline for the whole exchange, whatever comes byte by byte: the shutdown wakes whoever waits for the scraper.
        timer = threading.Timer(REQUEST_SECONDS, _shut, args=(client,))
        timer.daemon = True
        try:
            timer.start()
            threading.Thread(target=self._answer, args=(client, timer), daemon=True).start()
        except RuntimeError:
            # At a limit of tasks there is no thread for it; the next scrape may find one.
            timer.cancel()
            self._places.release()
            _turn_away(client)

    def finish(self, listener: socket.socket) -> None:
        """Answer who has come by now, within a second."""
        with self._door:
            self._leaving = True
        until = time.monotonic() + GOODBYE_SECONDS
        try:
            while time.monotonic() < until:
                self._take(listener)
        except OSError:
            # Nobody waits any more, or nobody can be let in: those who are in remain.
            pass
        for _ in range(CLIENTS_MAX):
            self._places.acquire(timeout=max(0.0, until - time.monotonic()))

    def _answer(self, client: socket.socket, timer: threading.Timer) -> None:
        try:
            with client:
                client.settimeout(REQUEST_SECONDS)
                Request(client, "", self)
        except OSError:
            # The scraper has gone: its own affair.
            return
        finally:
            timer.cancel()
            self._places.release()


def _turn_away(client: socket.socket) -> None:
    with client:
        try:
            client.settimeout(0)
            client.send(BUSY, socket.MSG_NOSIGNAL)
        except OSError:
            # It has gone, or takes nothing: it is told by the end of the connection.
            return


def _shut(client: socket.socket) -> None:
    try:
        client.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It is closed already.
        return


class Bounded:
    """A reader that gives up on a request that does not end."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._left = REQUEST_MAX

    def readline(self, limit: int = -1) -> bytes:
        """Return the next line. Raises ValueError when the request is longer than any scraper's."""
        line = self._file.readline(min(limit, self._left + 1) if limit >= 0 else self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise ValueError(f"a request of more than {REQUEST_MAX} bytes")
        return line

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Request(BaseHTTPRequestHandler):
    """One request of a scraper; each gets one answer and the connection ends."""

    server_version = f"poold/{__version__}"
    sys_version = ""
    # The standard library's is HTTP/0.9, whose answers have no status.
    default_request_version = "HTTP/1.0"

    def __init__(self, client: socket.socket, address: str, exporter: Exporter) -> None:
        self._exporter = exporter
        super().__init__(client, address, exporter)  # type: ignore[arg-type]  # it only keeps what is called the server

    def do_GET(self) -> None:
        """Answer."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            body, content_type = self._exporter.metrics(self.headers.get("Accept", ""))
            self._reply(200, body, content_type)
        elif path == "/healthz":
            alive = self._exporter.lifeline.ask(HEALTH_SECONDS)
            self._reply(200 if alive else 503, b"ok\n" if alive else b"the master's loop does not turn\n")
        elif path == "/readyz":
            ready = self._exporter.ready()
            self._reply(200 if ready else 503, b"ok\n" if ready else b"not accepting\n")
        else:
            self._reply(404, b"there are /metrics, /healthz and /readyz\n")

    do_HEAD = do_GET

    def _not_allowed(self) -> None:
        self._reply(405, b"only GET and HEAD\n")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _not_allowed

    def setup(self) -> None:
        """Make the files, and bound what is read of one request."""
        super().setup()
        # What an answer is made from, also to what turns out to be no request.
        self.requestline, self.command, self.request_version = "", "", "HTTP/1.0"
        self.rfile = Bounded(self.rfile)  # type: ignore[assignment]  # all that http.server asks of it is readline and close

    def handle(self) -> None:
        """Answer one request; one that is too long gets told so."""
        try:
            super().handle()
        except ValueError:
            self._reply(431, b"the request is too long\n")

    def _reply(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: scrapes are no events."""


def main() -> None:
    """Run an exporter until the master is gone."""
    sandbox.hide()
    fds = {name: int(number) for name, _, number in (argument.partition("=") for argument in sys.argv[1:])}
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
    sandbox.vanish_with(settings.get("master"))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    lifeline = Lifeline(socket.socket(fileno=fds["lifeline"]))
    listener = socket.socket(fileno=fds["listener"])
    # Another exporter may accept from it too while one takes the other's place; and an end that comes at once must not wait for it.
    listener.setblocking(False)
    exporter = Exporter(view, lifeline)
    threading.Thread(target=exporter.serve, args=(listener,), daemon=True).start()
    # The first question tells the master that scrapes are answered from now on.
    threading.Thread(target=lifeline.ask, args=(HEALTH_SECONDS,), daemon=True).start()
    lifeline.listen()
    exporter.finish(listener)
    os._exit(0)

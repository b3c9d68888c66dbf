"""Accepts clients of the metrics listener, each for one request and one answer.

Number and time of the exchanges are bounded.

A newcomer that finds no place free gets the place of another exchange. That exchange is the one
that has waited longest for its client to send or to take bytes. So clients that do nothing shut no
other client out. An exchange that waits for this process is never closed. Where all places are
taken by such exchanges, newcomers wait in the kernel's queue until the master has answered. Scrapes
have at most half of the places. The other half is for health checks, whose answers are small.
"""

import asyncio
import errno
import socket
from dataclasses import dataclass

from poold.exporter.answer import Answer, text_answer
from poold.exporter.request import REQUEST_MAX, Request, RequestFault, RequestReader
from poold.exporter.site import METRICS, Site
from poold.log import log, trace

CONNECTIONS_MAX = 64
SCRAPES_MAX = 32
# Seconds that one exchange may take, however slowly the client sends or takes bytes.
EXCHANGE_SECONDS = 5.0
# What a client sends after its answer is read and thrown away, within these bounds. To close with
# bytes unread would send a reset, which may overtake the answer (RFC 9112, 9.6).
LINGER_READS = 64
LINGER_SECONDS = 1.0
LINGER_BYTES = 65536
# Seconds without accept after an error of accept's own, and seconds of errors after which to give
# up.
PAUSE = 0.1
GIVE_UP_AFTER = 5.0
# The shortages that the end of another connection mends.
SHORTAGES = {errno.EMFILE, errno.ENFILE}


@dataclass(slots=True, eq=False)
class Exchange:
    """A connection.

    `served`: the exchange waits for this process, and not for its client. `scrape`: the path is
    /metrics.
    """

    task: "asyncio.Task[None] | None" = None
    served: bool = False
    scrape: bool = False


class Reception:
    """Holds the exchanges. `broken` is done when this process can answer no scraper.

    A Reception is made inside a running loop.
    """

    def __init__(self, listener: socket.socket, site: Site) -> None:
        """Watch a listener that does not block.

        While one exporter takes another's place, both of them accept.
        """
        self._listener = listener
        self._site = site
        self._loop = asyncio.get_running_loop()
        # The oldest exchange stands first.
        self._exchanges: dict[Exchange, None] = {}
        self._watched = False
        self._paused = False
        self._leaving = False
        self._failing_since: float | None = None
        self.broken: asyncio.Future[None] = self._loop.create_future()
        self._look()

    def _look(self) -> None:
        """Watch the listener while there is, or can be made, a place for a newcomer."""
        wanted = not (self._leaving or self._paused) and self._has_room()
        if wanted and not self._watched:
            self._loop.add_reader(self._listener, self._newcomer)
        elif self._watched and not wanted:
            self._loop.remove_reader(self._listener)
        self._watched = wanted

    def _has_room(self) -> bool:
        return len(self._exchanges) < CONNECTIONS_MAX or self._oldest() is not None

    def _oldest(self, *, scrapes: bool = False) -> Exchange | None:
        """Return the exchange that has waited longest for its client; None where none waits.

        With `scrapes`, only scrapes are looked at.
        """
        return next((each for each in self._exchanges if not each.served and each.scrape >= scrapes), None)

    def _newcomer(self) -> None:
        """Accept one client.

        The loop reads the client's request before the next call, so that no finished request is
        closed.
        """
        if not self._has_room():
            self._look()
            return
        try:
            self._accept()
        except BlockingIOError:
            # Another exporter has accepted the client.
            pass
        except OSError as error:
            self._failed(error)
            return
        self._failing_since = None

    def _accept(self) -> None:
        """Accept a client that there is room for. Raises OSError (accept(2))."""
        client, _ = self._listener.accept()
        client.setblocking(False)
        if len(self._exchanges) >= CONNECTIONS_MAX:
            self._close(self._oldest())
        exchange = Exchange()
        self._exchanges[exchange] = None
        exchange.task = self._loop.create_task(self._exchange(exchange, client))

    def _close(self, exchange: Exchange | None) -> None:
        """Close an exchange, so that another one gets the place."""
        if exchange is None or exchange.task is None:
            return
        self._dropped("crowd")
        del self._exchanges[exchange]
        exchange.task.cancel()

    @staticmethod
    def _dropped(reason: str) -> None:
        log.warning("scraper_dropped", reason=reason)

    def _failed(self, error: OSError) -> None:
        """Pause after an error of accept.

        Give up after `GIVE_UP_AFTER`, because another process may have no such error.
        """
        now = self._loop.time()
        log.warning("accept_error", listener="metrics", error=error.strerror)
        if error.errno in SHORTAGES:
            self._close(self._oldest())
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since >= GIVE_UP_AFTER:
            self.give_up()
        self._paused = True
        self._look()
        self._loop.call_later(PAUSE, self._resume)

    def _resume(self) -> None:
        self._paused = False
        self._look()

    def give_up(self) -> None:
        """Note that this process can answer no scraper any more."""
        if not self.broken.done():
            self.broken.set_result(None)

    async def _exchange(self, exchange: Exchange, client: socket.socket) -> None:
        """Have the exchange with one client, and close the connection."""
        with client:
            try:
                async with asyncio.timeout(EXCHANGE_SECONDS):
                    await self._talk(exchange, client)
            except TimeoutError:
                self._dropped("slow")
            except OSError:
                # The client has gone, or has reset the connection.
                pass
            finally:
                self._exchanges.pop(exchange, None)
                self._look()

    async def _talk(self, exchange: Exchange, client: socket.socket) -> None:
        """Read a request and send the answer. Raises OSError where the client has gone."""
        reader = RequestReader()
        verdict: Request | RequestFault | None = None
        while verdict is None:
            data = await self._loop.sock_recv(client, REQUEST_MAX)
            if not data:
                return
            verdict = reader.feed(data)
        exchange.served = True
        answer = await self._answer(exchange, verdict)
        exchange.served = False
        self._look()
        head = isinstance(verdict, Request) and verdict.head
        await self._loop.sock_sendall(client, answer.bytes_for(head=head))
        if reader.rest or isinstance(verdict, RequestFault):
            await self._linger(client)

    async def _answer(self, exchange: Exchange, verdict: Request | RequestFault) -> Answer:
        """Return the answer.

        An answer that cannot be made is a fault of poold's own, and goes to the log and the client.
        """
        if isinstance(verdict, RequestFault):
            return text_answer(verdict.status, verdict.text)
        if verdict.path == METRICS and not self._may_scrape():
            self._dropped("busy")
            return text_answer(503, f"{SCRAPES_MAX} scrapes are being answered already")
        exchange.scrape = verdict.path == METRICS
        try:
            return await self._site.answer(verdict)
        except Exception as error:
            log.error("scrape_failed", error=type(error).__name__, traceback=trace(error))
            return text_answer(500, "the answer could not be made; the log says why")

    def _may_scrape(self) -> bool:
        """Return whether there is a place for one more scrape.

        The scrape that has waited longest for its client gives way.
        """
        if sum(each.scrape for each in self._exchanges) < SCRAPES_MAX:
            return True
        slowest = self._oldest(scrapes=True)
        self._close(slowest)
        return slowest is not None

    async def _linger(self, client: socket.socket) -> None:
        client.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                for _ in range(LINGER_READS):
                    if not await self._loop.sock_recv(client, LINGER_BYTES):
                        return
        except TimeoutError:
            # The client has had time to take its answer.
            return

    async def finish(self, seconds: float) -> None:
        """Answer the clients that have connected by now within so many seconds, and no others."""
        self._leaving = True
        self._look()
        until = self._loop.time() + seconds
        try:
            while self._loop.time() < until and self._has_room():
                self._accept()
                # The loop reads the client's request before the next accept, as in `_newcomer`.
                await asyncio.sleep(0)
        except OSError:
            # No client waits in the queue, or none can be accepted.
            pass
        tasks = [each.task for each in self._exchanges if each.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, until - self._loop.time()))

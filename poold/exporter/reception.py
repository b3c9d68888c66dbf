"""Lets clients in, and out again: so many at once, each for one request and one answer, and none for long.

There is a bounded number of places. A client that has yet to finish its request, or to take its answer, has its place on
sufferance: the oldest of those is closed when a newcomer needs one. So nobody is shut out by clients that do nothing. Who waits for
this process is never closed; should all places be theirs, newcomers wait in the kernel's queue, which is as long as the master takes
to answer at most. Scrapes may have half of the places: the other half is for health checks, whose answers are small and quick.
"""

import asyncio
import errno
import socket
from dataclasses import dataclass

from poold.exporter.answer import Answer, told
from poold.exporter.request import REQUEST_MAX, Refusal, Request, RequestReader
from poold.exporter.site import METRICS, Site
from poold.log import log, trace

CONNECTIONS_MAX = 64
SCRAPES_MAX = 32
# One client's request and answer, whatever it sends or takes byte by byte.
EXCHANGE_SECONDS = 5.0
# What a client that has been answered still sends is thrown away, so many reads of it and for so long: closing with something unread
# would be a reset, which may overtake the answer (RFC 9112, 9.6).
LINGER_READS = 64
LINGER_SECONDS = 1.0
LINGER_BYTES = 65536
# How long to leave accept alone after an error of its own, and for how long that may go on.
PAUSE = 0.1
GIVE_UP_AFTER = 5.0
# What another connection's end would mend.
SHORTAGES = {errno.EMFILE, errno.ENFILE}


@dataclass(slots=True, eq=False)
class Exchange:
    """A connection. Unless it is `served`, it waits for its client and may be closed for another one; `scrape` is set for a scrape."""

    task: "asyncio.Task[None] | None" = None
    served: bool = False
    scrape: bool = False


class Reception:
    """Everybody who is in. `broken` is done when this process is of no use any more. To be made inside a running loop."""

    def __init__(self, listener: socket.socket, site: Site) -> None:
        """Take a listener that does not block: another exporter may accept from it too while one takes the other's place."""
        self._listener = listener
        self._site = site
        self._loop = asyncio.get_running_loop()
        # The oldest first.
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
        """Return who has waited longest for its own client, of the scrapes or of all."""
        return next((each for each in self._exchanges if not each.served and each.scrape >= scrapes), None)

    def _newcomer(self) -> None:
        """Let one in: it says what it has to say before the next one comes, so that only those are closed who have said nothing."""
        if not self._has_room():
            self._look()
            return
        try:
            self._accept()
        except BlockingIOError:
            # Another exporter was faster.
            pass
        except OSError as error:
            self._failed(error)
            return
        self._failing_since = None

    def _accept(self) -> None:
        """Let one in for whom there is room. Raises OSError (accept(2))."""
        client, _ = self._listener.accept()
        client.setblocking(False)
        if len(self._exchanges) >= CONNECTIONS_MAX:
            self._close(self._oldest())
        exchange = Exchange()
        self._exchanges[exchange] = None
        exchange.task = self._loop.create_task(self._exchange(exchange, client))

    def _close(self, exchange: Exchange | None) -> None:
        """Close somebody for somebody else's sake."""
        if exchange is None or exchange.task is None:
            return
        self._dropped("crowd")
        del self._exchanges[exchange]
        exchange.task.cancel()

    @staticmethod
    def _dropped(reason: str) -> None:
        log.warning("scraper_dropped", reason=reason)

    def _failed(self, error: OSError) -> None:
        """Leave accept alone for a moment; when that does not help for long, this process is of no use: another one may be."""
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
        """Note that this process is of no use."""
        if not self.broken.done():
            self.broken.set_result(None)

    async def _exchange(self, exchange: Exchange, client: socket.socket) -> None:
        """Have one client's exchange, and close it."""
        with client:
            try:
                async with asyncio.timeout(EXCHANGE_SECONDS):
                    await self._talk(exchange, client)
            except TimeoutError:
                self._dropped("slow")
            except OSError:
                # The client has gone, or has reset: its own affair.
                pass
            finally:
                self._exchanges.pop(exchange, None)
                self._look()

    async def _talk(self, exchange: Exchange, client: socket.socket) -> None:
        """Raise OSError where the client has gone, TimeoutError."""
        reader = RequestReader()
        verdict: Request | Refusal | None = None
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
        if reader.rest or isinstance(verdict, Refusal):
            await self._linger(client)

    async def _answer(self, exchange: Exchange, verdict: Request | Refusal) -> Answer:
        """Return the answer; one that cannot be made is our fault, said in the log, and told."""
        if isinstance(verdict, Refusal):
            return told(verdict.status, verdict.text)
        if verdict.path == METRICS and not self._may_scrape():
            self._dropped("busy")
            return told(503, f"{SCRAPES_MAX} scrapes are being answered already")
        exchange.scrape = verdict.path == METRICS
        try:
            return await self._site.answer(verdict)
        except Exception as error:
            log.error("scrape_failed", error=type(error).__name__, traceback=trace(error))
            return told(500, "the answer could not be made; the log says why")

    def _may_scrape(self) -> bool:
        """Say whether there is a place for one more scrape, after making one if need be."""
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
            # It has had its answer, and time to take it.
            return

    async def finish(self, seconds: float) -> None:
        """Answer who has come by now, within so many seconds, and let nobody in any more."""
        self._leaving = True
        self._look()
        until = self._loop.time() + seconds
        try:
            while self._loop.time() < until and self._has_room():
                self._accept()
                # It says what it has to say before the next one comes.
                await asyncio.sleep(0)
        except OSError:
            # Nobody waits any more, or nobody can be let in: those who are in remain.
            pass
        tasks = [each.task for each in self._exchanges if each.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, until - self._loop.time()))

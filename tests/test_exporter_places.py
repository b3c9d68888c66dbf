"""Places at the metrics listener: real connections to the part of the exporter that lets them in, with answers of any size.

A scrape of today fits into the kernel's buffers whole, so that no client is slow. The part is the real one; only what it answers with
is made up here.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from poold.exporter import reception
from poold.exporter.answer import Answer, http_answer, text_answer
from poold.exporter.reception import CONNECTIONS_MAX, SCRAPES_MAX, Reception
from poold.exporter.request import Request
from tests.waiting import DEADLINE

# More than the kernel takes of anybody.
HUGE = http_answer(200, b"x" * (8 << 20))
SCRAPE = b"GET /metrics HTTP/1.1\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\n\r\n"


class Site:
    """Answers a scrape with a lot, and a health check at once or when the test says so."""

    def __init__(self) -> None:
        self.held: asyncio.Event | None = None
        self.asked = 0

    async def answer(self, request: Request) -> Answer:
        self.asked += 1
        if request.path == "/metrics":
            return HUGE
        if request.path == "/fault":
            raise ValueError("a fault of our own")
        if self.held is not None:
            await self.held.wait()
        return text_answer(200, "ok")


class House:
    """A reception and its clients."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "listener")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(1024)
        self.listener.setblocking(False)
        self.site = Site()
        self.reception = Reception(self.listener, self.site)  # type: ignore[arg-type]  # what it asks of a site is `answer`
        self.clients: list[socket.socket] = []

    async def client(self, request: bytes = b"") -> socket.socket:
        """Return a client that has said this."""
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        self.clients.append(client)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, self.path)
        await loop.sock_sendall(client, request)
        return client

    @staticmethod
    async def rest(client: socket.socket) -> bytes:
        """Return all that a client still gets."""
        loop, got = asyncio.get_running_loop(), b""
        with contextlib.suppress(ConnectionResetError):
            while part := await loop.sock_recv(client, 1 << 20):
                got += part
        return got

    async def asks(self, request: bytes) -> bytes:
        """Return the answer to a request."""
        return await self.rest(await self.client(request))

    def close(self) -> None:
        for each in (self.listener, *self.clients):
            each.close()


@contextlib.asynccontextmanager
async def house(folder: Path) -> AsyncIterator[House]:
    """Open a reception for a test."""
    made = House(folder)
    try:
        async with asyncio.timeout(DEADLINE):
            yield made
        await made.reception.finish(0.0)
    finally:
        made.close()


def within(folder: Path, story: Callable[[House], Awaitable[None]]) -> None:
    """Run a test's story with a reception."""

    async def tell() -> None:
        async with house(folder) as made:
            await story(made)

    asyncio.run(tell())


def test_clients_that_do_not_read(tmp_path: Path) -> None:
    """Scrapers that never take their answers, more than there are places for scrapes, keep out neither scrapes nor health checks."""

    async def story(house: House) -> None:
        slow = [await house.client(SCRAPE) for _ in range(SCRAPES_MAX + 10)]
        assert (await house.asks(HEALTH)).startswith(b"HTTP/1.0 200 ")
        assert await house.asks(SCRAPE) == HUGE.whole
        # The oldest of them were closed in the middle of their answers, for those who came later; the youngest has it all.
        assert len(await house.rest(slow[0])) < len(HUGE.whole)
        assert await house.rest(slow[-1]) == HUGE.whole

    within(tmp_path, story)


def test_who_waits_for_us_is_not_closed(tmp_path: Path) -> None:
    """Those who wait for an answer that is not there yet stay; newcomers wait until one of them has it, and then come in."""

    async def story(house: House) -> None:
        house.site.held = asyncio.Event()
        waiting = [await house.client(HEALTH) for _ in range(CONNECTIONS_MAX)]
        while house.site.asked < CONNECTIONS_MAX:
            await asyncio.sleep(0)
        late = [asyncio.ensure_future(house.asks(HEALTH)) for _ in range(10)]
        for _ in range(100):
            await asyncio.sleep(0)
        assert house.site.asked == CONNECTIONS_MAX
        house.site.held.set()
        answers = [await house.rest(client) for client in waiting] + list(await asyncio.gather(*late))
        assert {text.partition(b" ")[2][:3] for text in answers} == {b"200"}

    within(tmp_path, story)


def test_scrapes_have_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scrapes beyond their share, where none of the others is slow, are told so at once."""

    async def story(house: House) -> None:
        house.site.held = asyncio.Event()

        async def held(request: Request) -> Answer:
            assert house.site.held is not None
            house.site.asked += 1
            await house.site.held.wait()
            return text_answer(200, "ok")

        monkeypatch.setattr(house.site, "answer", held)
        first = [asyncio.ensure_future(house.asks(SCRAPE)) for _ in range(SCRAPES_MAX)]
        while house.site.asked < SCRAPES_MAX:
            await asyncio.sleep(0)
        assert (await house.asks(SCRAPE)).startswith(b"HTTP/1.0 503 ")
        house.site.held.set()
        assert {text[:13] for text in await asyncio.gather(*first)} == {b"HTTP/1.0 200 "}

    within(tmp_path, story)


def test_fault_of_our_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An answer that cannot be made is a 500 for its client and a line of the log, and nobody else's affair."""

    async def story(house: House) -> None:
        for _ in range(20):
            assert (await house.asks(b"GET /fault HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.0 500 ")
        assert (await house.asks(HEALTH)).startswith(b"HTTP/1.0 200 ")

    within(tmp_path, story)
    lines = capfd.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 5
    assert all("scrape_failed" in line and "a fault of our own" in line for line in lines)


def test_answer_that_is_taken_slowly_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that takes its answer a little at a time has as long as one that says nothing, and no longer."""
    monkeypatch.setattr(reception, "EXCHANGE_SECONDS", 0.3)

    async def story(house: House) -> None:
        loop, client = asyncio.get_running_loop(), await house.client(SCRAPE)
        taken = 0
        while not taken or house.reception._exchanges:
            taken += len(await loop.sock_recv(client, 1))
            await asyncio.sleep(0.001)
        assert 0 < taken + len(await house.rest(client)) < len(HUGE.whole)

    within(tmp_path, story)


def test_finish(tmp_path: Path) -> None:
    """At the end who has come is answered, also who has not been let in yet, and who says nothing does not hold it up for long."""

    async def story(house: House) -> None:
        silent = await house.client()
        came = [await house.client(HEALTH) for _ in range(10)]
        await house.reception.finish(1.0)
        assert {(await house.rest(client))[:12] for client in came} == {b"HTTP/1.0 200"}
        silent.close()

    within(tmp_path, story)

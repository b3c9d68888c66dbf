"""What arrives at the metrics listener may be anything: properties of what reads it, and of the exporter as a whole."""

import contextlib
import itertools
import re
import socket
import string
from collections.abc import Sequence

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, exposition

from poold import scoreboard as board
from poold.exporter.formats import Format, negotiated
from poold.exporter.request import LINES_MAX, REQUEST_MAX, Request, RequestFault, RequestReader
from poold.exporter.site import hindrance
from tests.support import Poold
from tests.waiting import DEADLINE, eventually
from tests.wirekit import status

# What requests are made of, so that the unlikely is tried often.
WORDS = (
    rb"GET|HEAD|POST| |/metrics|/healthz|/|http://x|?|HTTP/1.1|HTTP/1.0|HTTP/2.0|:|Accept: |Host: x| folded|GET /metrics HTTP/1.1"
    rb"|application/openmetrics-text|;version=|1.0.0|;q=|0.5|,|*/*"
)
PIECES = st.one_of(
    st.sampled_from([*WORDS.split(b"|"), b"GET /metrics HTTP/1.1\r\n", b"GET /readyz HTTP/1.0\n", b"x" * 500, b"A: b\r\n" * 60]),
    st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b"\xff", b"\t"]),
    st.binary(max_size=40),
)
MESSAGES = st.lists(PIECES, max_size=40).map(b"".join)


def read(pieces: Sequence[bytes]) -> tuple[Request | RequestFault | None, bytes]:
    """Return the verdict on bytes that come in these pieces, and what was left over of them."""
    reader = RequestReader()
    for number, piece in enumerate(pieces):
        verdict = reader.feed(piece)
        if verdict is not None:
            return verdict, reader.rest + b"".join(pieces[number + 1 :])
    return None, b""


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """Cut bytes at these places."""
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(ends)]


@given(MESSAGES, st.lists(st.integers(0, 1 << 16), max_size=20))
def test_verdict_does_not_depend_on_the_pieces(data: bytes, places: list[int]) -> None:
    """The same bytes have the same verdict, and leave the same over, however they are cut into pieces."""
    assert read(cut(data, places)) == read([data])


@given(MESSAGES)
@example(b"x" * (REQUEST_MAX + 1))
@example(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (LINES_MAX + 1))
@example(b"GET / HTTP/1.1\r\nA: " + b"b" * REQUEST_MAX)
def test_every_verdict_is_one(data: bytes) -> None:
    """Bytes are a request, are refused with a proper status, or are no whole request yet, which they can be for so long only."""
    verdict, _ = read([data])
    match verdict:
        case Request():
            assert re.match(rb"(GET|HEAD) \S+ HTTP/1\.\d\r?\n", data)
            assert verdict.head == data.startswith(b"HEAD")
            assert "?" not in verdict.path
        case RequestFault():
            assert verdict.status in (400, 405, 414, 431, 501, 505)
            assert verdict.text.isprintable()
        case None:
            assert len(data) < REQUEST_MAX
            assert b"\n\r\n" not in data
            assert b"\n\n" not in data


@given(st.sampled_from(["GET", "HEAD"]), st.text(string.ascii_letters + "/.-%", max_size=50), st.text(string.ascii_letters, max_size=9))
def test_good_requests_are_read(method: str, path: str, query: str) -> None:
    """What a scraper sends is read as what it means."""
    text = f"{method} /{path}?{query} HTTP/1.1\r\nHost: x\r\naccept: a/b;q=0.1\r\nX-Scrape: 1\r\nACCEPT:\t*/* \r\n\r\nrest"
    assert read([text.encode()]) == (Request(method == "HEAD", f"/{path}", "a/b;q=0.1, */*"), b"rest")


ACCEPTS = st.lists(
    st.one_of(
        st.sampled_from(["application/openmetrics-text", "text/plain", "*/*", "text/*", ";", ",", "=", "q", "version", '"', " "])
        | st.sampled_from(["1.0.0", "0.0.1", "0.0.4", "abc", "", "1", "1e9", "nan", "-1", "0", "0.5", "escaping=allow-utf-8"]),
        st.text(max_size=5),
    ),
    max_size=30,
).map("".join)


@given(ACCEPTS)
@example("application/openmetrics-text; version=abc")
@example("application/openmetrics-text;q=nan,text/plain;q=inf")
def test_every_accept_has_a_format(accept: str) -> None:
    """Every Accept header gets a format, and OpenMetrics only one that names it."""
    assert negotiated(accept) is Format.TEXT or "application/openmetrics-text" in accept.lower()


def test_formats_of_well_known_scrapers() -> None:
    """Prometheus, old and new, and agents that read OpenMetrics get it; browsers and curl get text."""
    prometheus_2 = (
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,"
        "*/*;q=0.1"
    )
    prometheus_3 = (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
        "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    )
    assert [negotiated(accept) for accept in (prometheus_2, prometheus_3)] == [Format.OPENMETRICS] * 2
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
    assert [negotiated(accept) for accept in ("*/*", browser, "")] == [Format.TEXT] * 3


def test_the_library_knows_the_formats() -> None:
    """prometheus_client takes a format's own name for that format."""
    for format in Format:
        encode, content_type = exposition.choose_encoder(format.value)
        assert content_type.startswith(format.value)
        assert encode(CollectorRegistry()) == (b"# EOF\n" if format is Format.OPENMETRICS else b"")


@given(
    st.booleans(), st.booleans(), st.floats(0, 100).map(lambda value: round(value, 3)), st.floats(0, 100).map(lambda value: round(value, 3))
)
def test_hindrances(draining: bool, accepting: bool, closed_at: float, barren_from: float) -> None:
    """A newcomer is hindered by a drain, by five seconds without an accept, and from the moment on at which no worker can be born."""
    cells = [0] * board.CELLS
    cells[board.DRAINING], cells[board.ACCEPTING] = draining, accepting
    cells[board.NOT_ACCEPTING_SINCE] = 0 if accepting else int(closed_at * 1e6)
    cells[board.BARREN_FROM] = int(barren_from * 1e6)
    closed = not accepting and (closed_at == 0 or closed_at <= 45)
    assert bool(hindrance(cells, 50.0)) == (draining or closed or 0 < barren_from <= 50)


def test_whatever_comes_gets_one_answer_or_none(poold: Poold) -> None:
    """To arbitrary bytes in arbitrary pieces there is one whole answer or the end, and the exporter is the same as before."""
    daemon = poold().start(laws=False)
    daemon.metric("poold_children", 1, kind="exporter", state="serving")

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(MESSAGES, st.lists(st.integers(0, 1 << 16), max_size=4), st.booleans())
    def ask(data: bytes, places: list[int], vanish: bool) -> None:
        with socket.create_connection(("127.0.0.1", daemon.metrics_port), timeout=DEADLINE) as client:
            # Each piece is a packet of its own.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answer = b""
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, OSError):
                for piece in cut(data, places):
                    client.sendall(piece)
                if vanish:
                    return
                client.shutdown(socket.SHUT_WR)
                while part := client.recv(65536):
                    answer += part
        verdict, _ = read([data])
        if verdict is None:
            assert answer == b""
            return
        head, _, content = answer.partition(b"\r\n\r\n")
        assert re.fullmatch(rb"HTTP/1\.0 \d{3} [A-Za-z -]+(\r\n[A-Za-z-]+: [ -~]+)+", head), answer[:200]
        length = int(re.search(rb"\r\nContent-Length: (\d+)\b", head)[1])  # type: ignore[index]
        if isinstance(verdict, RequestFault):
            assert (status(answer), len(content)) == (verdict.status, length)
        else:
            assert status(answer) in (200, 404)
            assert len(content) == (0 if verdict.head else length)

    ask()
    eventually(lambda: daemon.get("/healthz") == 200, "a health check")
    assert len(daemon.events("exporter_started")) == 1
    assert "Traceback" not in daemon.log.read_text()
    assert [event for name in ("scrape_failed", "loop_error") for event in daemon.events(name)] == []

"""Reads one HTTP request, strictly and within bounds. Pure: bytes go in, in pieces of any size, and at most one verdict comes out.

It knows as much of HTTP as a scrape and a health check are made of (RFC 9110, RFC 9112): GET and HEAD, no content, one request a
connection. Two liberties, for checks that are written by hand: a line may end with LF alone (RFC 9112, 2.2), and no Host is asked
for, because nothing here depends on it.
"""

import re
from dataclasses import dataclass

# Bytes of a whole request, and its header lines. Prometheus sends some 400 bytes; a browser adds every cookie of this host.
REQUEST_MAX = 8192
LINES_MAX = 100

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"[!-~]+")
_VERSION = re.compile(rb"HTTP/([0-9])\.[0-9]")
# Nobody is another server here, whatever stands before the path (RFC 9112, 3.2.2: absolute-form must be accepted).
_ORIGIN = re.compile(r"https?://[^/?]*", re.IGNORECASE)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# Methods that exist (RFC 9110, RFC 5789) and are not for this server.
_OTHER_METHODS = {b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT"}


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request: GET or HEAD, the path without its query, and what all its Accept lines say."""

    head: bool
    path: str
    accept: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why what has come is no request that can be answered: a status and a line of text."""

    status: int
    text: str


class RequestReader:
    """Takes the bytes of one connection until there is a verdict; `rest` are those behind it."""

    def __init__(self) -> None:
        self._left = REQUEST_MAX
        self._lines = 0
        self._head = False
        self._path: str | None = None
        self._accept: list[str] = []
        self.rest = b""

    def feed(self, data: bytes) -> Request | Refusal | None:
        """Take some more bytes; return the verdict, None while there is none. Not to be called after a verdict."""
        taken = data[: self._left]
        self._left -= len(taken)
        self.rest += taken
        while (end := self.rest.find(b"\n")) >= 0:
            line, self.rest = self.rest[:end].removesuffix(b"\r"), self.rest[end + 1 :]
            verdict = self._request_line(line) if self._path is None else self._header_line(line)
            if verdict is not None:
                self.rest += data[len(taken) :]
                return verdict
        if self._left:
            return None
        return Refusal(414 if self._path is None else 431, f"a request has at most {REQUEST_MAX} bytes")

    def _request_line(self, line: bytes) -> Refusal | None:
        words = line.split(b" ")
        if len(words) != 3 or not _TOKEN.fullmatch(words[0]) or not _TARGET.fullmatch(words[1]):
            return Refusal(400, "a request begins with METHOD PATH HTTP/1.1")
        method, target, version = words
        known = _VERSION.fullmatch(version)
        if known is None:
            return Refusal(400, "a request begins with METHOD PATH HTTP/1.1")
        if known[1] != b"1":
            return Refusal(505, "HTTP/1.0 and HTTP/1.1 are spoken here")
        if method not in (b"GET", b"HEAD"):
            return Refusal(405, "only GET and HEAD") if method in _OTHER_METHODS else Refusal(501, "only GET and HEAD")
        self._head = method == b"HEAD"
        self._path = _path(target.decode("ascii"))
        return None

    def _header_line(self, line: bytes) -> Request | Refusal | None:
        if not line:
            assert self._path is not None
            return Request(self._head, self._path, ", ".join(self._accept))
        self._lines += 1
        if self._lines > LINES_MAX:
            return Refusal(431, f"a request has at most {LINES_MAX} header lines")
        name, colon, value = line.partition(b":")
        # Folded lines (RFC 9112, 5.2) and blanks before the colon (5.1) have no name that is a token.
        if not colon or not _TOKEN.fullmatch(name) or _CONTROL.search(value):
            return Refusal(400, "a header line is NAME: VALUE")
        if name.lower() == b"accept":
            self._accept.append(value.strip(b" \t").decode("latin-1"))
        return None


def _path(target: str) -> str:
    """Return the path of a request's target, without what stands before it in an absolute one and without a query."""
    origin = _ORIGIN.match(target)
    return (target[origin.end() :] if origin is not None else target).partition("?")[0]

"""Reads one HTTP request, strictly and within bounds.

Pure: pieces of bytes go in, and at most one verdict comes out.

A scrape and a health check need GET and HEAD, no content, and one request for each connection (RFC
9110, RFC 9112). Requests that people write by hand may end a line with LF alone (RFC 9112, 2.2).
They may leave out Host, because no answer depends on Host.
"""

import re
from dataclasses import dataclass

# Bytes of a whole request, and its header lines. A browser sends every cookie of the host.
REQUEST_MAX = 8192
LINES_MAX = 100

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"[!-~]+")
_VERSION = re.compile(rb"HTTP/([0-9])\.[0-9]")
# What stands before the path of a target in absolute form, which servers must accept (RFC 9112,
# 3.2.2).
_ORIGIN = re.compile(r"https?://[^/?]*", re.IGNORECASE)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# Methods that exist (RFC 9110, RFC 5789) and that this server does not serve.
_OTHER_METHODS = {b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT"}


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request: GET or HEAD, the path without its query, and all Accept lines as one."""

    head: bool
    path: str
    accept: str


@dataclass(frozen=True, slots=True)
class RequestFault:
    """What is wrong with a request: the status of the answer, and a line of text."""

    status: int
    text: str


class RequestReader:
    """Takes the bytes of one connection until there is a verdict.

    `rest` holds the bytes behind the request.
    """

    def __init__(self) -> None:
        self._left = REQUEST_MAX
        self._lines = 0
        self._head = False
        self._path: str | None = None
        self._accept: list[str] = []
        self.rest = b""

    def feed(self, data: bytes) -> Request | RequestFault | None:
        """Take more bytes; return the verdict, None while there is none.

        No bytes are taken after a verdict.
        """
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
        return RequestFault(414 if self._path is None else 431, f"a request has at most {REQUEST_MAX} bytes")

    def _request_line(self, line: bytes) -> RequestFault | None:
        words = line.split(b" ")
        if len(words) != 3 or not _TOKEN.fullmatch(words[0]) or not _TARGET.fullmatch(words[1]):
            return RequestFault(400, "a request begins with METHOD PATH HTTP/1.1")
        method, target, version = words
        known = _VERSION.fullmatch(version)
        if known is None:
            return RequestFault(400, "a request begins with METHOD PATH HTTP/1.1")
        if known[1] != b"1":
            return RequestFault(505, "HTTP/1.0 and HTTP/1.1 are spoken here")
        if method not in (b"GET", b"HEAD"):
            return RequestFault(405, "only GET and HEAD") if method in _OTHER_METHODS else RequestFault(501, "only GET and HEAD")
        self._head = method == b"HEAD"
        self._path = _path(target.decode("ascii"))
        return None

    def _header_line(self, line: bytes) -> Request | RequestFault | None:
        if not line:
            assert self._path is not None
            return Request(self._head, self._path, ", ".join(self._accept))
        self._lines += 1
        if self._lines > LINES_MAX:
            return RequestFault(431, f"a request has at most {LINES_MAX} header lines")
        name, colon, value = line.partition(b":")
        # The name of a folded line (RFC 9112, 5.2) is no token, nor is a name with a blank before
        # the colon (5.1).
        if not colon or not _TOKEN.fullmatch(name) or _CONTROL.search(value):
            return RequestFault(400, "a header line is NAME: VALUE")
        if name.lower() == b"accept":
            self._accept.append(value.strip(b" \t").decode("latin-1"))
        return None


def _path(target: str) -> str:
    """Return the path of a request's target, without scheme, host and query."""
    origin = _ORIGIN.match(target)
    return (target[origin.end() :] if origin is not None else target).partition("?")[0]

"""Makes whole HTTP answers. Pure, but for the date."""

from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, and the length of its head: HEAD gets no content."""

    whole: bytes
    head_size: int

    def bytes_for(self, *, head: bool) -> memoryview:
        """Return what to send.

        Nothing is copied, because the clients that ask in the same moment share an answer.
        """
        return memoryview(self.whole)[: self.head_size if head else None]


def http_answer(status: int, content: bytes, content_type: str = PLAIN) -> Answer:
    """Return an answer that ends its connection, as in HTTP/1.0 (RFC 9112, 9.3)."""
    lines = [
        f"HTTP/1.0 {status} {HTTPStatus(status).phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(content)}",
        "Connection: close",
    ]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        # A 405 must name the methods that are allowed (RFC 9110, 15.5.6).
        lines.append("Allow: GET, HEAD")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return Answer(head + content, len(head))


def text_answer(status: int, text: str) -> Answer:
    """Return an answer whose content is a line of text."""
    return http_answer(status, f"{text}\n".encode())

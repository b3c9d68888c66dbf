"""What goes back to a client: a whole HTTP answer. Pure, but for the date."""

from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and its length without the content, which HEAD does not get."""

    whole: bytes
    head_size: int

    def bytes_for(self, *, head: bool) -> memoryview:
        """Return what to send; no copy, because those who ask in the same moment share it."""
        return memoryview(self.whole)[: self.head_size if head else None]


def answer(status: int, content: bytes, content_type: str = PLAIN) -> Answer:
    """Return an answer that ends its connection. HTTP/1.0, which is all that is spoken here, has no other (RFC 9112, 9.3)."""
    lines = [
        f"HTTP/1.0 {status} {HTTPStatus(status).phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(content)}",
        "Connection: close",
    ]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        # Without it a 405 is none (RFC 9110, 15.5.6).
        lines.append("Allow: GET, HEAD")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return Answer(head + content, len(head))


def told(status: int, text: str) -> Answer:
    """Return an answer that is a line of text."""
    return answer(status, f"{text}\n".encode())

"""The WSGI application that gunicorn serves: the same answer as `web.Hello`."""

from collections.abc import Callable, Iterable

BODY = b"hello\n"


def application(environ: dict[str, object], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """Serve one request."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))])
    return [BODY]

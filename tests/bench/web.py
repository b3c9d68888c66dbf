"""The handler of poold's HTTP measurements: the standard library's, one request a connection (HTTP/1.0)."""

from http.server import BaseHTTPRequestHandler

BODY = b"hello\n"


class Hello(BaseHTTPRequestHandler):
    """Answers every GET with the same few bytes."""

    def do_GET(self) -> None:
        """Serve one request."""
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:
        """Write no line for each request: the peers do not either."""

"""The standard library's way, `python forking_tcp.py ADDRESS PORT`: ForkingTCPServer that echoes.

Its defaults but for the two that would be the limit here: how many clients the kernel keeps waiting (5), how many children live (40).
"""

import sys
from socketserver import BaseRequestHandler, ForkingTCPServer


class Echo(BaseRequestHandler):
    """Sends back what the client sends, until its end of file."""

    def handle(self) -> None:
        """Serve one connection."""
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Server(ForkingTCPServer):
    """Forks for each connection."""

    request_queue_size = 1024
    max_children = 16384
    allow_reuse_address = True


if __name__ == "__main__":
    Server((sys.argv[1], int(sys.argv[2])), Echo).serve_forever()

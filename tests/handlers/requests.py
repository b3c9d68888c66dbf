"""Handlers written for socketserver and http.server, unchanged."""

import http.server
import socketserver


class Upper(socketserver.StreamRequestHandler):
    """Send lines back in capitals."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class Address(socketserver.BaseRequestHandler):
    """Say what socketserver tells a handler."""

    def handle(self) -> None:
        host, port = self.client_address[:2]
        self.request.sendall(f"{host} {port} {self.server.server_address} {self.server.RequestHandlerClass.__name__}\n".encode())


class Web(http.server.SimpleHTTPRequestHandler):
    """The standard library's file server, as it is."""

    protocol_version = "HTTP/1.1"

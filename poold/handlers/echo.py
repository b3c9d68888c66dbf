"""The echo handler (RFC 862): whatever the client sends goes back, until it has sent its last byte."""

from poold.connection import Connection

CHUNK = 65536


def serve(connection: Connection) -> None:
    """Send back what the client sends, until its end of file."""
    client = connection.socket
    while data := client.recv(CHUNK):
        client.sendall(data)

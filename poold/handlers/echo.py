"""The echo handler (RFC 862): sends back what the client sends, until the client's last byte."""

from poold.connection import Connection

READ_SIZE = 65536


def serve(connection: Connection) -> None:
    """Send back what the client sends, until the client's end of file."""
    client = connection.socket
    while data := client.recv(READ_SIZE):
        client.sendall(data)

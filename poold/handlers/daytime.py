"""The daytime handler (RFC 867): one line with the date and the time of the zone TZ, then the end.

What the client sends is ignored, but it is read away: a close with unread input makes the kernel send a reset, and that can
overtake the line (RFC 2525, 2.17).
"""

import socket
import time

from poold.connection import Connection

# The form that RFC 867 suggests: Tuesday, February 22, 1982 17:37:43-PST
FORM = "%A, %B %d, %Y %H:%M:%S-%Z\r\n"
MOST_READS = 16
CHUNK = 65536


def serve(connection: Connection) -> None:
    """Send the line; read away what has come in until now, in bounded work."""
    connection.socket.sendall(time.strftime(FORM).encode("ascii", "replace"))
    for _ in range(MOST_READS):
        try:
            # The class's own recv: on TLS the flag is refused, and what is thrown away need not be decrypted first.
            if not socket.socket.recv(connection.socket, CHUNK, socket.MSG_DONTWAIT):
                return
        except BlockingIOError:
            return

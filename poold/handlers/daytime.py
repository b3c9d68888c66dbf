"""The daytime handler (RFC 867): sends one line with date and time of the zone TZ, then ends.

The handler reads what the client has sent and drops these bytes. On a close with unread input the
kernel sends a reset. The reset can overtake the line (RFC 2525, 2.17).
"""

import socket
import time

from poold.connection import Connection

# The form that RFC 867 suggests: Tuesday, February 22, 1982 17:37:43-PST
FORM = "%A, %B %d, %Y %H:%M:%S-%Z\r\n"
READS_MAX = 16
READ_SIZE = 65536


def serve(connection: Connection) -> None:
    """Send the line, and read what has come so far, in a bounded number of calls."""
    connection.socket.sendall(time.strftime(FORM).encode("ascii", "replace"))
    for _ in range(READS_MAX):
        try:
            # socket.socket.recv, also on TLS: an SSL socket refuses the flag, and the dropped bytes
            # need not be decrypted.
            if not socket.socket.recv(connection.socket, READ_SIZE, socket.MSG_DONTWAIT):
                return
        except BlockingIOError:
            return

"""A handler that imports nothing, and says what is there all the same."""

import sys


def serve(connection: object) -> None:
    """Send the names of all loaded modules."""
    names = sorted(set(sys.modules) - {"weight"})
    connection.socket.sendall(("[" + ", ".join(f'"{name}"' for name in names) + "]\n").encode())  # type: ignore[attr-defined]

"""A handler that tries what its client says, with nothing but `os`: it also runs as a user who may not read the interpreter's library."""

import os

from poold import Connection


def serve(connection: Connection) -> None:
    """Evaluate each line, and say the name of what it raises."""
    for line in connection.reader:
        try:
            eval(line, {"os": os})
            answer = "nothing"
        except Exception as error:
            answer = type(error).__name__
        connection.socket.sendall(f"{answer}\n".encode())

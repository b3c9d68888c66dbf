"""A handler that says at once how many pages this process had to be given by faults until now."""

from resource import RUSAGE_SELF, getrusage

from poold import Connection


def serve(connection: Connection) -> None:
    """Say it, and stay until the client leaves."""
    connection.socket.sendall(b"%d\n" % getrusage(RUSAGE_SELF).ru_minflt)
    connection.socket.recv(1)

"""A handler that needs nothing besides what a mold has loaded: it also runs as a user who may not read the interpreter's library."""

import os

from poold import Connection


def serve(connection: Connection) -> None:
    """Say who serves, as the source text of a dict."""
    with open("/proc/self/status", "rb") as status:
        capabilities = [line.split()[1] for line in status if line.startswith((b"CapEff:", b"CapPrm:"))]
    facts = {
        "uid": list(os.getresuid()),
        "gid": list(os.getresgid()),
        "groups": os.getgroups(),
        "cwd": os.getcwd(),
        "umask": os.umask(0o077),
        "user": os.environ["USER"],
        "capabilities": sum(int(text, 16) for text in capabilities),
    }
    connection.socket.sendall(repr(facts).encode() + b"\n")

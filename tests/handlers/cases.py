"""The handler that most tests use: it does what the client asks for, a line at a time."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from poold import Connection


def serve(connection: Connection) -> None:
    """Obey the client until it has no more to say."""
    for line in connection.reader:
        word, _, argument = line.decode().strip().partition(" ")
        answer = ORDERS[word](connection, argument)
        if answer is not None:
            connection.socket.sendall(f"{answer}\n".encode())


def facts(connection: Connection, _: str) -> str:
    return json.dumps(
        {
            "pid": os.getpid(),
            "ppid": os.getppid(),
            "sid": os.getsid(0),
            "uid": os.getresuid(),
            "gid": os.getresgid(),
            "groups": os.getgroups(),
            "cwd": os.getcwd(),
            "umask": os.umask(0o077),
            "environ": dict(os.environ),
            "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
            "id": connection.id,
            "peer": str(connection.peer),
            "local": str(connection.local),
            "listener": connection.listener,
            "options": dict(connection.options),
            "stopping": connection.stopping,
            "blocking": connection.socket.getblocking(),
            "modules": sorted(sys.modules),
            "status": Path("/proc/self/status").read_text(),
        }
    )


def ignore_term(_: Connection, argument: str) -> str:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return "ok"


def raise_error(_: Connection, argument: str) -> None:
    raise {
        "error": ValueError("asked for\nan error \x1b[31m"),
        "keyboard": KeyboardInterrupt(),
        "generator": GeneratorExit(),
        "memory": MemoryError(),
        "recursion": RecursionError("too deep"),
        "broken": BrokenPipeError(32, "broken"),
        "reset": ConnectionResetError(104, "reset"),
        "exit": SystemExit("a text"),
    }[argument]


def fork(_: Connection, argument: str) -> str:
    """Leave a process behind; with "hold" it keeps the connection, with "setsid" it leaves the group."""
    pid = os.fork()
    if pid == 0:
        if argument == "setsid":
            os.setsid()
        while True:
            signal.pause()
    return str(pid)


def kill_self(_: Connection, argument: str) -> None:
    os.kill(os.getpid(), int(argument))


def crash(_: Connection, argument: str) -> None:
    import ctypes

    ctypes.string_at(0)


def set_status(connection: Connection, argument: str) -> str:
    connection.set_status(argument)
    return "ok"


def spin(_: Connection, argument: str) -> None:
    while True:
        pass


def flood(connection: Connection, argument: str) -> None:
    """Write until the client has gone."""
    while True:
        connection.socket.sendall(b"x" * 65536)


def print_text(_: Connection, argument: str) -> str:
    print(argument)
    print(argument, file=sys.stderr)
    return "ok"


def write_late(connection: Connection, argument: str) -> None:
    connection.writer.write(argument.encode())


ORDERS = {
    "echo": lambda _, argument: argument,
    "pid": lambda _, argument: str(os.getpid()),
    "facts": facts,
    "exit": lambda _, argument: os._exit(int(argument)),
    "sysexit": lambda _, argument: sys.exit(int(argument)),
    "raise": raise_error,
    "signal": kill_self,
    "crash": crash,
    "ignore_term": ignore_term,
    "fork": fork,
    "status": set_status,
    "spin": spin,
    "flood": flood,
    "print": print_text,
    "late": write_late,
    "sleep": lambda _, argument: time.sleep(float(argument)),
    "bye": lambda connection, argument: connection.socket.shutdown(2),
}

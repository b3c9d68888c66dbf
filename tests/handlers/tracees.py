"""The handler of `cases`, with more to ask for: processes that make the master their tracer (ptrace(2), PTRACE_TRACEME)."""

import ctypes
import os
import signal
import struct
import threading
from collections.abc import Callable
from typing import NoReturn

import cases
from cases import serve

from poold import Connection

__all__ = ["serve"]

PTRACE_TRACEME = 0
CLONE_PTRACE = 0x2000
SYS_CLONE = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine, 0)
libc = ctypes.CDLL(None, use_errno=True)


def trace_me() -> None:
    """Make the parent of this process the tracer of this thread."""
    if libc.ptrace(PTRACE_TRACEME, 0, None, None):
        raise OSError(ctypes.get_errno(), "PTRACE_TRACEME")


def stop() -> None:
    """Be stopped, for the tracer to see."""
    trace_me()
    os.kill(os.getpid(), signal.SIGSTOP)


def signalled_again_and_again() -> None:
    """Trace and stop without an end; the signal itself does nothing."""
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    while True:
        # Fails as long as there is a tracer.
        libc.ptrace(PTRACE_TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGUSR1)


def execute() -> None:
    """Trace, and become another program, which is announced by a SIGTRAP."""
    trace_me()
    os.execv("/bin/true", ["true"])


def trap() -> None:
    """Trace, and run into a trap of the program's own."""
    trace_me()
    signal.raise_signal(signal.SIGTRAP)


def end() -> None:
    """Trace, and end."""
    trace_me()


def end_by_a_thread() -> None:
    """Let a thread trace and end: its end is told like a process's."""
    thread = threading.Thread(target=trace_me)
    thread.start()
    thread.join()


def stop_a_thread() -> None:
    """Let a thread trace, and stop it alone."""
    reached = threading.Event()

    def be_traced() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        trace_me()
        reached.set()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    thread = threading.Thread(target=be_traced)
    thread.start()
    thread.join()


def clone_traced() -> None:
    """Trace, and make a process that is traced as well without being the tracer's child (clone(2), CLONE_PTRACE)."""
    trace_me()
    if libc.syscall(SYS_CLONE, CLONE_PTRACE | signal.SIGCHLD, None, None, None, None) == 0:
        os._exit(5)
    os.wait()


DEEDS: dict[str, Callable[[], None]] = {
    "stop": stop,
    "again": signalled_again_and_again,
    "execute": execute,
    "trap": trap,
    "end": end,
    "thread-end": end_by_a_thread,
    "thread-stop": stop_a_thread,
    "clone": clone_traced,
}


def traced(_: Connection, argument: str) -> None:
    """Do a deed in the worker itself, and end with this status."""
    deed, _, status = argument.partition(" ")
    DEEDS[deed]()
    os._exit(int(status or 0))


def orphans(_: Connection, argument: str) -> str:
    """Make so many processes that make so many orphans each, which do a deed once they have fallen to the master; say their pids."""
    deed, middles, each = argument.split()
    master, reader, writer = os.getppid(), *os.pipe()
    for _ in range(int(middles)):
        if (middle := os.fork()) == 0:
            for _ in range(int(each)):
                if os.fork() == 0:
                    be_orphan(DEEDS[deed], master, writer)
            os._exit(0)
        os.waitpid(middle, 0)
    os.close(writer)
    pids = b""
    while len(pids) < 4 * int(middles) * int(each):
        pids += os.read(reader, 65536)
    return " ".join(map(str, struct.unpack(f"{len(pids) // 4}i", pids)))


def be_orphan(deed: Callable[[], None], master: int, writer: int) -> NoReturn:
    while os.getppid() != master:
        os.sched_yield()
    os.write(writer, struct.pack("i", os.getpid()))
    os.closerange(3, 1024)
    try:
        deed()
    finally:
        os._exit(0)


cases.ORDERS.update({"traced": traced, "orphans": orphans})

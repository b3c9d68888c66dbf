"""The only place where workers are made: a clone whose parent is the master.

CLONE_PARENT (clone(2)) makes the new process a child of this process's parent, so SIGCHLD, the exit status and the resource
usage arrive at the master, where the table is. CPython names what must be called around a fork that is not os.fork():
PyOS_BeforeFork, PyOS_AfterFork_Parent, PyOS_AfterFork_Child (C API, "Operating System Utilities").

The raw system call skips the C library's fork handlers, which take its locks. With one thread there is nobody who could hold
them. With more there is: clones of a process that had getaddrinfo or dlopen running hung in 8 of 18 cases. So a mold that has
threads forks twice with os.fork() instead: the middle process ends at once, and its child falls to the master, which is a
subreaper (prctl(2), PR_SET_CHILD_SUBREAPER). That is a third slower and never hung.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from ctypes import get_errno

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from typing import Any

_CLONE_VFORK = 0x00004000
_CLONE_PARENT = 0x00008000
_CLONE_CHILD_CLEARTID = 0x00200000
_CLONE_CHILD_SETTID = 0x01000000
_PR_GET_TID_ADDRESS = 40

# By architecture: the number of clone, and whether the TLS argument stands before the child's thread id (clone(2), "C
# library/kernel differences"). Elsewhere workers are forked twice. clone3 is the same everywhere, but it fails with ENOSYS
# where systemd's RestrictNamespaces= is on.
_CLONE = {"x86_64": (56, False), "aarch64": (220, True)}
_GETPPID = {"x86_64": 110, "aarch64": 173}.get(os.uname().machine)
_RT_SIGACTION = {"x86_64": 13, "aarch64": 134}.get(os.uname().machine)
_CLONE_NUMBER, _TLS_FIRST = _CLONE.get(os.uname().machine, (None, False))

# PyDLL, not CDLL: the interpreter's lock must stay held across the clone, and the child goes on as its holder. Every function is
# looked up and every argument made here, once: what the child touches for the first time is a page copied, at each clone.
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_before = ctypes.pythonapi.PyOS_BeforeFork
_after_in_child = ctypes.pythonapi.PyOS_AfterFork_Child
_after_in_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
for _function in (_before, _after_in_child, _after_in_parent):
    _function.restype = None
    _function.argtypes = ()


def _tid_address() -> int | None:
    """Return where the C library keeps this thread's id, or None where the kernel does not tell.

    The child must get its own id there, or every call that uses it (pthread_setaffinity_np, say) would act on the mold.
    """
    address = ctypes.c_void_p()
    if _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), None, None, None) != 0:
        return None
    return address.value


_TID_ADDRESS = _tid_address()
CLONE_WORKS = _CLONE_NUMBER is not None and _TID_ADDRESS is not None
_FLAGS = _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | signal.SIGCHLD
_TID = ctypes.c_void_p(_TID_ADDRESS)
# Small numbers go as they are (ctypes passes them as int, which libffi widens): an object of ctypes is wrapped anew at each call, and the
# wrapping taken down again in both processes.
_ARGUMENTS = (_CLONE_NUMBER or 0, _FLAGS, None, None, *((None, _TID) if _TLS_FIRST else (_TID, None)))


def reset_internal_signals() -> None:
    """Give the two signals that the C library keeps to itself their default disposition.

    glibc's posix_spawn leaves 32 and 33 ignored in what it starts, its sigaction refuses to name them, and an ignored signal
    would stay ignored in every program that a worker starts.
    """
    if _RT_SIGACTION is not None:
        default = ctypes.create_string_buffer(64)
        for number in (32, 33):
            _syscall(ctypes.c_long(_RT_SIGACTION), ctypes.c_long(number), ctypes.byref(default), None, ctypes.c_ulong(8))


def threads() -> int:
    """Return how many threads this process has, those that Python does not know included."""
    return len(os.listdir("/proc/self/task"))


def refuse_company() -> None:
    """Raise RuntimeError if the handler's import has left a process behind: nobody would wait for it, and it may think it is a mold."""
    try:
        pid, _ = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return
    which = f"process {pid}" if pid else "a process"
    raise RuntimeError(f"the handler's import forked and left {which} behind; wait for it there, or start it when a connection is served")


# The same, but of a child of this process; for the scout, this process stands still until that child has ended.
OBSERVER_ARGUMENTS = (_ARGUMENTS[0], _FLAGS & ~_CLONE_PARENT, *_ARGUMENTS[2:])
SCOUT_ARGUMENTS = (_ARGUMENTS[0], _FLAGS & ~_CLONE_PARENT | _CLONE_VFORK, *_ARGUMENTS[2:])


def clone_worker(arguments: tuple[Any, ...] = _ARGUMENTS) -> int:
    """Clone this process as a child of the master: return its pid, and 0 in the clone. Raises OSError.

    To be called with one thread only.
    """
    # Looked up before, so that no clone does it anew.
    in_child, in_parent = _after_in_child, _after_in_parent
    _before()
    pid: int = _syscall(*arguments)
    (in_parent if pid else in_child)()
    if pid < 0:
        number = get_errno()
        raise OSError(number, os.strerror(number))
    return pid


def ended_well(pid: int) -> bool:
    """Wait for a child of this process, and say whether it ended with 0."""
    return os.waitpid(pid, 0)[1] == 0


def warm_up(times: int) -> None:
    """Call what a clone calls, without cloning: what is done for the first times in a process is more (PEP 659)."""
    if _GETPPID is not None and CLONE_WORKS:
        for _ in range(times):
            clone_worker((_GETPPID, *_ARGUMENTS[1:]))


def fork_worker(master: int) -> int:
    """Do the same by forking twice; the process `master` must be a subreaper. Raises OSError.

    The worker returns only once it is the master's child: before, PR_SET_PDEATHSIG would fire at the middle process's end.
    """
    said_r, said_w = os.pipe()
    gone_r, gone_w = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.close(said_r)
        os.close(gone_w)
        _fork_again(said_w)
        os.read(gone_r, 1)
        os.close(gone_r)
        if os.getppid() != master:
            os._exit(1)
        return 0
    os.close(said_w)
    os.close(gone_r)
    try:
        said = os.read(said_r, 8)
        os.waitpid(middle, 0)
    finally:
        os.close(said_r)
        os.close(gone_w)
    if len(said) != 8:
        raise OSError(errno.EAGAIN, "the middle process ended without a word")
    pid, number = struct.unpack("ii", said)
    if number:
        raise OSError(number, os.strerror(number))
    return int(pid)


def _fork_again(said_w: int) -> None:
    """Be the middle process: fork the worker, say its pid, end. Only the worker returns."""
    try:
        pid = os.fork()
    except OSError as error:
        os.write(said_w, struct.pack("ii", 0, error.errno or errno.EAGAIN))
        os._exit(1)
    if pid:
        os.write(said_w, struct.pack("ii", pid, 0))
        os._exit(0)
    os.close(said_w)

"""Makes workers: clones of the mold that are children of the master.

CLONE_PARENT (clone(2)) makes the new process a child of the mold's own parent, the master. The
master then gets SIGCHLD, the exit status and the resource usage. Around a fork other than os.fork()
CPython asks for PyOS_BeforeFork, PyOS_AfterFork_Parent and PyOS_AfterFork_Child (C API, "Operating
System Utilities").

The raw system call skips the fork handlers of the C library, which take the library's locks. With
one thread no other thread can hold these locks. With several threads a clone may hang, because one
of them was inside getaddrinfo or dlopen. A mold with several threads therefore forks twice with
os.fork(). The middle process ends at once, and its child becomes a child of the master, which is a
subreaper (prctl(2), PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from ctypes import get_errno

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from typing import Any

_CLONE_VFORK = 0x00004000
_CLONE_PARENT = 0x00008000
_CLONE_CHILD_CLEARTID = 0x00200000
_CLONE_CHILD_SETTID = 0x01000000
_PR_GET_TID_ADDRESS = 40

# By architecture: the number of clone(2), and whether the argument for thread-local storage comes
# before the thread id (clone(2), "C library/kernel differences"). On any other architecture workers
# are forked twice.
_CLONE_CALLS = {"x86_64": (56, False), "aarch64": (220, True)}
_GETPPID = {"x86_64": 110, "aarch64": 173}.get(os.uname().machine)
_RT_SIGACTION = {"x86_64": 13, "aarch64": 134}.get(os.uname().machine)
_CLONE_NUMBER, _TLS_FIRST = _CLONE_CALLS.get(os.uname().machine, (None, False))

# PyDLL, not CDLL, keeps the interpreter's lock held across the clone, and the child goes on as the
# holder of the lock. All functions are looked up and all arguments made here, before any clone. The
# kernel copies a page at the first write in the child, after each clone again.
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
    """Return the address at which the C library keeps this thread's id, or None if unknown.

    The kernel writes the child's own id there (clone(2), CLONE_CHILD_SETTID). With the mold's id
    the C library would act on the mold, in pthread_setaffinity_np(3) for example.
    """
    address = ctypes.c_void_p()
    if _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), None, None, None) != 0:
        return None
    return address.value


_TID_ADDRESS = _tid_address()
CLONE_WORKS = _CLONE_NUMBER is not None and _TID_ADDRESS is not None
_FLAGS = _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | signal.SIGCHLD
_TID = ctypes.c_void_p(_TID_ADDRESS)
# Small numbers are Python integers: ctypes passes each as a C int, which libffi widens. For an
# object of ctypes, each call would make a wrapper and free that wrapper in both processes.
_ARGUMENTS = (_CLONE_NUMBER or 0, _FLAGS, None, None, *((None, _TID) if _TLS_FIRST else (_TID, None)))


def reset_internal_signals() -> None:
    """Set the C library's two internal signals to their default disposition.

    glibc's posix_spawn leaves 32 and 33 ignored in the programs that it starts, and glibc's
    sigaction refuses these numbers. A program that a worker starts would inherit the ignored
    signals, so the system call is made directly.
    """
    if _RT_SIGACTION is not None:
        default = ctypes.create_string_buffer(64)
        for number in (32, 33):
            _syscall(ctypes.c_long(_RT_SIGACTION), ctypes.c_long(number), ctypes.byref(default), None, ctypes.c_ulong(8))


def threads() -> int:
    """Return how many threads this process has, including those that Python did not start."""
    return len(os.listdir("/proc/self/task"))


def refuse_company() -> None:
    """Raise RuntimeError if the handler's import has left a child process of this one.

    The mold waits for no such child. The child may also have returned from the import and would
    then act as a second mold.
    """
    try:
        pid, _ = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return
    which = f"process {pid}" if pid else "a process"
    raise RuntimeError(f"the handler's import forked and left {which} behind; wait for it there, or start it when a connection is served")


# Observer and scout are children of the mold itself. CLONE_VFORK stops the mold until the scout has
# ended.
OBSERVER_ARGUMENTS = (_ARGUMENTS[0], _FLAGS & ~_CLONE_PARENT, *_ARGUMENTS[2:])
SCOUT_ARGUMENTS = (_ARGUMENTS[0], _FLAGS & ~_CLONE_PARENT | _CLONE_VFORK, *_ARGUMENTS[2:])


def clone_worker(arguments: tuple[Any, ...] = _ARGUMENTS) -> int:
    """Clone this process as a child of the master. Return the clone's pid, and 0 in the clone.

    The process must have one thread only. Raises OSError.
    """
    # Looked up here, before the clone: a look-up in the clone would write to shared pages.
    in_child, in_parent = _after_in_child, _after_in_parent
    _before()
    pid: int = _syscall(*arguments)
    (in_parent if pid else in_child)()
    if pid < 0:
        number = get_errno()
        raise OSError(number, os.strerror(number))
    return pid


def ended_well(pid: int) -> bool:
    """Wait for a child of this process. Return whether the child has exited with 0."""
    return os.waitpid(pid, 0)[1] == 0


def warm_up(times: int) -> None:
    """Run the code around a clone without cloning: getppid(2) stands in for clone(2).

    The interpreter writes to its own code objects during the first runs (PEP 659). These writes
    then happen before the first clone.
    """
    if _GETPPID is not None and CLONE_WORKS:
        for _ in range(times):
            clone_worker((_GETPPID, *_ARGUMENTS[1:]))


def fork_worker(master_pid: int) -> int:
    """Fork a worker by forking twice. Return the worker's pid, and 0 in the worker.

    The process `master_pid` must be a subreaper. The function returns in the worker only once the
    master is the worker's parent. Until then the end of the middle process would trigger the
    worker's PR_SET_PDEATHSIG. Raises OSError.
    """
    pid_reader, pid_writer = os.pipe()
    adopted_reader, adopted_writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.close(pid_reader)
        os.close(adopted_writer)
        _fork_again(pid_writer)
        os.read(adopted_reader, 1)
        os.close(adopted_reader)
        if os.getppid() != master_pid:
            os._exit(1)
        return 0
    os.close(pid_writer)
    os.close(adopted_reader)
    try:
        answer = os.read(pid_reader, 8)
        os.waitpid(middle, 0)
    finally:
        os.close(pid_reader)
        os.close(adopted_writer)
    if len(answer) != 8:
        raise OSError(errno.EAGAIN, "the middle process ended without a word")
    pid, number = struct.unpack("ii", answer)
    if number:
        raise OSError(number, os.strerror(number))
    return int(pid)


def _fork_again(pid_writer: int) -> None:
    """Be the middle process: fork, write the worker's pid, end. Only the worker returns."""
    try:
        pid = os.fork()
    except OSError as error:
        os.write(pid_writer, struct.pack("ii", 0, error.errno or errno.EAGAIN))
        os._exit(1)
    if pid:
        os.write(pid_writer, struct.pack("ii", pid, 0))
        os._exit(0)
    os.close(pid_writer)

"""Processes that have made the master their tracer: their stops are taken, and the master traces them no more.

Any process may ask that its parent be its tracer (ptrace(2), PTRACE_TRACEME), and so may what a session left behind, whose parent the
master becomes. From then on each of its signals stops it, and each stop comes out of the wait for exits, asked for or not; one that is
not taken comes first for ever and hides every exit behind it (wait(2)). So it is taken, which makes the kernel quiet about it, and a
moment later the process goes on with its signal and without a tracer. It may ask again: so many are let go in so much time, whatever
they do, and nobody but they themselves has to wait for that.
"""

import ctypes
import errno
import os
import signal
import struct

from poold.log import log
from poold.master.engine.loop import Loop

# How many are let go at one time, and how long the others wait.
RELEASES_MAX = 16
RELEASE_SECONDS = 0.01

_PTRACE_DETACH = 17
_PTRACE_GETSIGINFO = 0x4202
# The head of siginfo_t (sigaction(2)): number, errno, code, and the sender's pid, where the alignment of a pointer puts it.
_SIGINFO = struct.Struct("3i0Pi")
_SIGINFO_SIZE = 128
_SI_USER = 0
# What pidfd_open(2) says of a thread; the second since Linux 6.15.
_NO_PROCESS = {errno.EINVAL, errno.ENOENT}

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def is_process(task: int) -> bool:
    """Say whether a dead task is a process: a traced thread's end is told to its tracer as a child's is."""
    try:
        os.close(os.pidfd_open(task))
    except OSError as error:
        # Anything else than what a thread is answered with tells nothing: a want of descriptors, say.
        return error.errno not in _NO_PROCESS
    return True


def pending_signal(task: int, status: int) -> int:
    """Return the signal that a stopped task would have had without a tracer; `status` is that of its stop (waitid(2), si_status).

    None where the kernel has made the stop for the tracer's sake: an event, whose number is above the signal's; the SIGTRAP after an
    exec; the SIGSTOP that a task begins with that is traced because its maker is (clone(2), CLONE_PTRACE).
    """
    if status > signal.NSIG:
        return 0
    if status in (signal.SIGTRAP, signal.SIGSTOP):
        information = ctypes.create_string_buffer(_SIGINFO_SIZE)
        if _ptrace(_PTRACE_GETSIGINFO, task, None, ctypes.addressof(information)):
            # It stands still with its whole group: the signal has done its work (ptrace(2), "Group-stop").
            return 0
        _, _, code, sender = _SIGINFO.unpack_from(information)
        if code == _SI_USER and (status == signal.SIGTRAP or sender == 0):
            return 0
    return status


class Tracees:
    """The stopped ones that have not been let go."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        # By task (the pid of a process, or the id of a thread): the status of its stop; whoever came first goes first.
        self._held: dict[int, int] = {}

    def stopped(self, task: int) -> None:
        """Take the stop of a task that the wait for exits has shown."""
        try:
            # Not its exit, should it have been killed meanwhile: that is the reaper's, who will see it.
            stop = os.waitid(os.P_PID, task, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            return
        if stop is None:
            return
        if not self._held:
            self._loop.after(RELEASE_SECONDS, self._release_some)
        self._held[task] = stop.si_status
        log.debug("tracee_stopped", pid=task, status=stop.si_status)

    def forget(self, task: int) -> None:
        """Forget a task whose exit is about to be taken: its number may be another's then."""
        self._held.pop(task, None)

    def release(self, count: int) -> None:
        """Let so many of them go on, with their signal and without a tracer."""
        for task in list(self._held)[:count]:
            # It fails for one that has been killed meanwhile, which is left to its exit.
            _ptrace(_PTRACE_DETACH, task, None, pending_signal(task, self._held.pop(task)))

    def release_all(self) -> None:
        """Let everybody go on: nobody will know of them any more."""
        self.release(len(self._held))

    def _release_some(self) -> None:
        self.release(RELEASES_MAX)
        if self._held:
            self._loop.after(RELEASE_SECONDS, self._release_some)

"""Processes that have made the master their tracer: the master takes their stops and lets them go.

Any process may ask that its parent trace the process (ptrace(2), PTRACE_TRACEME). What a session
has left behind may ask too, because the master becomes its parent. From then on each signal stops
the process. The wait for exits returns each stop, even without WSTOPPED. A stop that is not taken
comes first each time, and hides every exit behind that stop (wait(2)).

The master takes the stop, and the kernel does not report the stop again. A moment later the process
goes on with its signal and without a tracer. The process may ask again. For this reason the master
lets only a bounded number go in a given time. Only the processes that ask have to wait for that.
"""

import ctypes
import errno
import os
import signal
import struct

from poold.log import log
from poold.master.engine.loop import Loop

# The most tracees that are let go at one time, and the seconds that the others wait.
RELEASES_MAX = 16
RELEASE_SECONDS = 0.01

_PTRACE_DETACH = 17
_PTRACE_GETSIGINFO = 0x4202
# The head of siginfo_t (sigaction(2)): number, errno, code, and the sender's pid, where the
# alignment of a pointer puts the pid.
_SIGINFO = struct.Struct("3i0Pi")
_SIGINFO_SIZE = 128
_SI_USER = 0
# The errors of pidfd_open(2) for a thread. The second is new in Linux 6.15.
_NO_PROCESS = {errno.EINVAL, errno.ENOENT}

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def is_process(task: int) -> bool:
    """Say whether a dead task is a process.

    The kernel tells a tracer the end of a traced thread in the same way as the end of a child.
    """
    try:
        os.close(os.pidfd_open(task))
    except OSError as error:
        # Any other error says nothing about the task, for example that there is no free descriptor.
        return error.errno not in _NO_PROCESS
    return True


def pending_signal(task: int, status: int) -> int:
    """Return the signal that a stopped task would have had without a tracer, or 0 for none.

    `status` is the status of the stop (waitid(2), si_status). There is no signal where the kernel
    has made the stop for the tracer:

    - an event, whose number is above the signal's
    - the SIGTRAP after an exec
    - the first SIGSTOP of a task whose maker is traced (clone(2), CLONE_PTRACE)
    """
    if status > signal.NSIG:
        return 0
    if status in (signal.SIGTRAP, signal.SIGSTOP):
        information = ctypes.create_string_buffer(_SIGINFO_SIZE)
        if _ptrace(_PTRACE_GETSIGINFO, task, None, ctypes.addressof(information)):
            # The task is stopped with its whole group: the signal has done its work (ptrace(2),
            # "Group-stop").
            return 0
        _, _, code, sender = _SIGINFO.unpack_from(information)
        if code == _SI_USER and (status == signal.SIGTRAP or sender == 0):
            return 0
    return status


class Tracees:
    """The stopped tracees that the master has not let go yet."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        # The status of the stop by task: the pid of a process, or the id of a thread. The first
        # task that has stopped is let go first.
        self._held: dict[int, int] = {}

    def stopped(self, task: int) -> None:
        """Take the stop of a task that the wait for exits has returned."""
        try:
            # Only a stop is taken here. The task may have been killed meanwhile, and the reaper
            # takes the exit.
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
        """Forget a task whose exit is about to be taken. Another task may get its number then."""
        self._held.pop(task, None)

    def release(self, count: int) -> None:
        """Let this many tasks go on, each with its signal and without a tracer."""
        for task in list(self._held)[:count]:
            # The call fails for a task that has been killed meanwhile. The reaper takes the exit of
            # that task.
            _ptrace(_PTRACE_DETACH, task, None, pending_signal(task, self._held.pop(task)))

    def release_all(self) -> None:
        """Let all tasks go on, because the next program does not know of them."""
        self.release(len(self._held))

    def _release_some(self) -> None:
        self.release(RELEASES_MAX)
        if self._held:
            self._loop.after(RELEASE_SECONDS, self._release_some)

"""The handler of the hostile campaign: an honest echo, and sessions that do their worst to what they can reach.

The client's lines say what to do: `echo TEXT` and `pid` are answered; `deed NAME SEED` does one of `DEEDS`, by a random generator
of that seed. A deed's answer begins with GOT when the session got hold of what no session may have.

Bounded: a deed ends within seconds, makes a few dozen processes and a few dozen megabytes at the most, and signals, traces and
limits nobody but itself and what it has forked. What it leaves behind is called `leftover` (proc(5), comm) and ends by itself
after `LIFE` seconds, unless it is stopped.
"""

import array
import atexit
import ctypes
import errno
import fcntl
import mmap
import os
import random
import resource
import signal
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from poold import Connection

LIFE = 20
Random = random.Random
Deed = Callable[[Connection, Random], str | None]

DEEDS: dict[str, Deed] = {}
LIBC = ctypes.CDLL(None, use_errno=True)
KEPT: list[Any] = []

PTRACE_TRACEME = 0
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 15, 36, 38
F_ADD_SEALS, EVERY_SEAL = 1033, 0x3F
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
CLONE_PARENT = 0x8000
SYS_CLONE, SYS_EXIT, SYS_REMAP_FILE_PAGES = 56, 60, 216
SYS_PIDFD_GETFD, SYS_PROCESS_VM_READV = 438, 310
ON_X86 = os.uname().machine == "x86_64"


def serve(connection: Connection) -> None:
    """Obey the client until it has no more to say."""
    for line in connection.reader:
        word, _, argument = line.decode(errors="replace").strip().partition(" ")
        if word == "echo":
            answer: str | None = argument
        elif word == "pid":
            answer = str(os.getpid())
        elif word == "deed":
            name, _, seed = argument.partition(" ")
            answer = DEEDS[name](connection, Random(seed)) or "done"
        else:
            answer = "what?"
        connection.socket.sendall(f"{answer}\n".encode())


def deed(function: Deed) -> Deed:
    """Put a function into `DEEDS`, under its name with dashes."""
    DEEDS[function.__name__.replace("_", "-")] = function
    return function


# ---- What deeds have in common --------------------------------------------------------------------------------------------------


def descriptors() -> dict[int, str]:
    """Return every descriptor of this process and what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            # It was that of the listing.
            continue
    return found


def memories() -> list[int]:
    """Return the descriptors of memory files."""
    return [fd for fd, file in descriptors().items() if file.startswith("/memfd:")]


def sockets() -> list[int]:
    """Return the descriptors of sockets."""
    return [fd for fd in descriptors() if stat.S_ISSOCK(os.fstat(fd).st_mode)]


def trying(action: Callable[..., Any], *arguments: Any) -> Any:
    """Return what an action returns, None if the system forbids it."""
    try:
        return action(*arguments)
    except (OSError, ValueError, OverflowError, BufferError):
        # That it may not is what is hoped for.
        return None


def called_leftover() -> None:
    """Take the name by which the campaign finds what sessions have left behind, and end within `LIFE` seconds."""
    LIBC.prctl(PR_SET_NAME, b"leftover", 0, 0, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.alarm(LIFE)


def forked(act: Callable[[], object]) -> int:
    """Do something in a child process, which then ends; return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            called_leftover()
            act()
        finally:
            os._exit(0)
    return pid


def orphaned(act: Callable[[], object]) -> None:
    """Do something in a process whose parent has ended: the master is its parent, by adoption."""

    def adopted() -> None:
        middle = os.getppid()
        if os.fork() == 0:
            try:
                called_leftover()
                end = time.monotonic() + 5
                while os.getppid() == middle and time.monotonic() < end:
                    time.sleep(0.001)
                act()
            finally:
                os._exit(0)

    os.waitpid(forked(adopted), 0)


def bounded_memory(more: int) -> None:
    """Let this process have so many bytes more, and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more,) * 2)


def woken_later() -> None:
    """Have a child continue this process a few times in the next seconds, for as long as it is this process's child."""
    me = os.getpid()
    if os.fork() == 0:
        # Not called a leftover: whoever is called so may be killed before it has done this.
        try:
            for _ in range(4):
                nap(0.7)
                if os.getppid() == me:
                    os.kill(me, signal.SIGCONT)
        finally:
            os._exit(0)


def nap(seconds: float) -> None:
    """Be there for a while."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(left)


def shared_areas() -> Iterator[tuple[int, int, str, str]]:
    """Yield begin, end, rights and name of each shared mapping of memory that is poold's."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            words = line.split(maxsplit=5)
            if "s" in words[1] and "memfd:" in line:
                begin, _, end = words[0].partition("-")
                yield int(begin, 16), int(end, 16), words[1], words[5].strip()


# ---- Descriptors and shared memory ----------------------------------------------------------------------------------------------


@deed
def truncate_everything(connection: Connection, rng: Random) -> None:
    """Make everything that it has open empty: whoever reads a page that is gone dies of SIGBUS."""
    for fd in descriptors():
        if fd > 2:
            trying(os.ftruncate, fd, 0)


@deed
def grow_everything(connection: Connection, rng: Random) -> None:
    """Take memory that is nobody's, behind the end of what is shared."""
    for fd in memories():
        trying(os.ftruncate, fd, rng.randrange(1 << 20, 1 << 30))
        trying(os.posix_fallocate, fd, max(0, os.fstat(fd).st_size), 32 << 20)


@deed
def seal_everything(connection: Connection, rng: Random) -> None:
    """Forbid everybody else to write and to resize."""
    seals = [0x10, EVERY_SEAL, 0x08, 0x01]
    rng.shuffle(seals)
    for fd in memories():
        for mask in seals:
            trying(fcntl.fcntl, fd, F_ADD_SEALS, mask)


@deed
def punch_holes(connection: Connection, rng: Random) -> None:
    """Give back the pages of what is shared."""
    for fd in memories():
        LIBC.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(1 << 30))


@deed
def scribble_over_memory(connection: Connection, rng: Random) -> None:
    """Map every memory file and write all over it, at each place where there is something already."""
    garbage = rng.randbytes(4096)
    for fd in memories():
        area = trying(mmap.mmap, fd, 0)
        if area is None:
            continue
        at = 0
        while at < len(area):
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            area[at : at + 4096] = garbage[: len(area) - at]
            at += 4096
        area.close()


@deed
def pose_as_siblings(connection: Connection, rng: Random) -> str | None:
    """Write a status and a client that has gone into the page of every other worker; reopen memory through /proc for more rights."""
    got = 0
    for fd in memories():
        again = trying(os.open, f"/proc/self/fd/{fd}", os.O_RDWR)
        for each in [fd] if again is None else [fd, again]:
            size = os.fstat(each).st_size
            at = 0
            while at < size:
                try:
                    at = os.lseek(each, at, os.SEEK_DATA)
                except OSError:
                    break
                page = os.pread(each, 232, at)
                owner = int.from_bytes(page[224:232], "little") if len(page) == 232 else 0
                if owner not in (0, os.getpid()) and Path(f"/proc/{owner}").exists():
                    got += 1
                    trying(os.pwrite, each, struct.pack("<QdQ", 1, 1e300, 5) + b"owned", at)
                at += 4096
    return f"GOT the pages of {got} other sessions" if got else None


@deed
def make_mappings_writable(connection: Connection, rng: Random) -> str | None:
    """Ask for more rights on what is mapped read-only, then write to it: a drain that is none, for one."""
    got = []
    for begin, end, rights, name in list(shared_areas()):
        if "w" not in rights and LIBC.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 3) == 0:
            ctypes.memset(begin, 1, 8)
            got.append(name)
    return f"GOT write access to {got}" if got else None


@deed
def remap_everything(connection: Connection, rng: Random) -> None:
    """Move, grow and turn over what is mapped, then look at it."""
    LIBC.mremap.restype = ctypes.c_void_p
    for begin, end, _, _ in list(shared_areas()):
        if ON_X86:
            LIBC.syscall(
                SYS_REMAP_FILE_PAGES, ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 0, ctypes.c_size_t(rng.randrange(64)), 0
            )
        moved = LIBC.mremap(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_size_t(1 << 24), 1)
        if moved not in (None, ctypes.c_void_p(-1).value):
            LIBC.madvise(ctypes.c_void_p(moved), ctypes.c_size_t(1 << 24), 9)  # MADV_REMOVE
    connection.set_status("remapped")


@deed
def write_garbage_everywhere(connection: Connection, rng: Random) -> None:
    """Write random bytes to everything that is open, the log too."""
    for fd in descriptors():
        trying(os.set_blocking, fd, True) if fd > 2 else None
        trying(os.write, fd, rng.randbytes(rng.randrange(1, 4096)))
        trying(os.pwrite, fd, rng.randbytes(64), rng.randrange(1 << 16))


@deed
def speak_on_channels(connection: Connection, rng: Random) -> None:
    """Say to poold, on whatever socket it has of poold's, what poold's own processes say."""
    words = [struct.pack("<BxxxiQ", word, rng.randrange(-5, 99), rng.randrange(1 << 40)) for word in range(9)]
    for fd in sockets():
        if fd != connection.socket.fileno():
            end = socket.socket(fileno=os.dup(fd))
            for _ in range(50):
                trying(end.send, rng.choice(words), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            trying(end.sendmsg, [b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 100))], socket.MSG_DONTWAIT)
            end.close()


@deed
def send_descriptors_to_itself(connection: Connection, rng: Random) -> None:
    """Put every descriptor into flight, in a ring that only the kernel's garbage collector can end (unix(7))."""
    for _ in range(20):
        one, two = socket.socketpair()
        fds = [*descriptors(), one.fileno(), two.fileno()]
        trying(socket.send_fds, one, [b"x"], [fd for fd in fds if trying(os.fstat, fd)][:200])
        trying(socket.send_fds, two, [b"x"], [one.fileno(), two.fileno()])
        KEPT.append((one, two) if rng.random() < 0.5 else None)


@deed
def close_everything(connection: Connection, rng: Random) -> None:
    """Close all there is, the standard streams and its own connection too, and return as if nothing had happened."""
    os.closerange(0, 65536)


@deed
def dup_over_everything(connection: Connection, rng: Random) -> None:
    """Put another file where each descriptor was."""
    zero = os.open("/dev/zero", os.O_RDWR)
    for fd in descriptors():
        if fd != zero:
            trying(os.dup2, zero, fd)


@deed
def close_and_ask(connection: Connection, rng: Random) -> None:
    """Close what poold needs for a status and a deadline, and ask for both."""
    keep = connection.socket.fileno()
    os.closerange(3, keep)
    os.closerange(keep + 1, 65536)
    for ask in (lambda: connection.set_status("closed"), lambda: connection.extend_deadline(1), lambda: connection.stopping):
        trying(ask)


@deed
def close_and_open_others(connection: Connection, rng: Random) -> None:
    """Close what poold needs, have files of its own at those numbers, and ask for a status."""
    keep = connection.socket.fileno()
    for fd in range(3, 64):
        if fd != keep:
            trying(os.close, fd)
    for _ in range(64):
        fd = os.memfd_create("poold-activity")
        os.ftruncate(fd, 64 << 10)
        KEPT.append(fd)
    trying(connection.set_status, "into a file of my own")
    if b"into a file of my own" in os.pread(KEPT[-1], 4096, 0):
        raise RuntimeError("poold wrote into a file that is not its own")


@deed
def shut_down_sockets(connection: Connection, rng: Random) -> None:
    """Shut down every socket that it finds."""
    for fd in sockets():
        end = socket.socket(fileno=os.dup(fd))
        trying(end.shutdown, rng.choice([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))
        end.detach()


@deed
def change_socket_options(connection: Connection, rng: Random) -> None:
    """Set odd options on every socket: no buffers, a linger of a year, credentials, time-outs."""
    for fd in sockets():
        end = socket.socket(fileno=os.dup(fd))
        for level, option, value in (
            (socket.SOL_SOCKET, socket.SO_SNDBUF, 1),
            (socket.SOL_SOCKET, socket.SO_RCVBUF, 1),
            (socket.SOL_SOCKET, socket.SO_PASSCRED, 1),
            (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, rng.choice([0, 1, 3]))),
            (socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 1)),
            (socket.IPPROTO_TCP, socket.TCP_CORK, 1),
        ):
            trying(end.setsockopt, level, option, value)
        end.close()


@deed
def unblock_the_log(connection: Connection, rng: Random) -> None:
    """Change what belongs to everybody who has the log's stream: non-blocking, no append, its place, signals for its events."""
    os.set_blocking(2, False)
    trying(fcntl.fcntl, 2, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    trying(fcntl.fcntl, 2, fcntl.F_SETOWN, os.getpid())
    trying(os.lseek, 2, 0, os.SEEK_SET)
    print("written from the start", file=sys.stderr)


@deed
def truncate_the_log(connection: Connection, rng: Random) -> None:
    """Empty the log, or make it large."""
    trying(os.ftruncate, 2, rng.choice([0, 0, 1 << 20]))


@deed
def lock_the_log(connection: Connection, rng: Random) -> None:
    """Lock the log's stream in each way there is, and the folders of sockets, and leave with the locks held by a process that stays."""
    for folder in ("folder", "scratch"):
        for place in (str(connection.options[folder]), f"{connection.options[folder]}/run"):
            fd = trying(os.open, place, os.O_RDONLY)
            if fd is not None:
                trying(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    trying(fcntl.flock, 2, fcntl.LOCK_EX | fcntl.LOCK_NB)
    trying(fcntl.lockf, 2, fcntl.LOCK_EX | fcntl.LOCK_NB)
    trying(fcntl.fcntl, 2, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    orphaned(lambda: nap(2))


@deed
def read_the_log(connection: Connection, rng: Random) -> str | None:
    """Read what others have logged."""
    if trying(os.read, 2, 1) or trying(os.pread, 1, 1, 0):
        return "GOT the log"
    again = trying(os.open, "/proc/self/fd/2", os.O_RDONLY | os.O_NONBLOCK)
    return None if again is None else f"GOT a reader of what others print: {os.readlink('/proc/self/fd/2')}"


# ---- Processes and signals ------------------------------------------------------------------------------------------------------


@deed
def fork_bomb(connection: Connection, rng: Random) -> None:
    """Fork thirty processes that fork no more, and wait for none."""
    for _ in range(30):
        forked(lambda: nap(0.5))


@deed
def stopped_orphans(connection: Connection, rng: Random) -> None:
    """Leave orphans that ask the master to trace them, then stop: stops come to it that are no exits (ptrace(2))."""

    def stop() -> None:
        LIBC.ptrace(PTRACE_TRACEME, 0, None, None)
        os.kill(os.getpid(), rng.choice([signal.SIGSTOP, signal.SIGUSR1, signal.SIGTRAP]))

    for _ in range(25):
        orphaned(stop)


@deed
def traced_orphan_that_executes(connection: Connection, rng: Random) -> None:
    """Leave an orphan that the master traces and that becomes another program: a trap comes with it."""

    def execute() -> None:
        LIBC.ptrace(PTRACE_TRACEME, 0, None, None)
        os.execv("/bin/true", ["leftover"])

    orphaned(execute)


@deed
def traced_session(connection: Connection, rng: Random) -> None:
    """Make the master its own tracer, then take signals and execute: it stops at each, until its tracer lets it go."""
    woken_later()
    LIBC.ptrace(PTRACE_TRACEME, 0, None, None)
    for _ in range(rng.randrange(1, 4)):
        os.kill(os.getpid(), rng.choice([signal.SIGSTOP, signal.SIGTSTP, signal.SIGWINCH, signal.SIGCHLD, signal.SIGCONT]))
    if rng.random() < 0.5:
        os.execv("/bin/true", ["true"])


@deed
def traced_by_a_child(connection: Connection, rng: Random) -> None:
    """Be traced by a child of its own, which stops it, and lets it go or dies."""
    woken_later()
    me, (reader, writer) = os.getpid(), os.pipe()

    def trace() -> None:
        LIBC.ptrace(16, me, None, None)  # PTRACE_ATTACH
        LIBC.waitpid(me, None, 0x40000000)  # __WALL
        os.write(writer, b"x")
        nap(rng.uniform(0, 1))
        if rng.random() < 0.5:
            LIBC.ptrace(17, me, None, None)  # PTRACE_DETACH

    LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    LIBC.prctl(0x59616D61, ctypes.c_long(-1), 0, 0, 0)  # PR_SET_PTRACER, where a security module asks for it
    forked(trace)
    os.read(reader, 1)


@deed
def orphan_that_holds_the_connection(connection: Connection, rng: Random) -> None:
    """Leave an orphan that has the connection, for a while; the client waits for an end that does not come."""
    orphaned(lambda: nap(2))


@deed
def double_forks_with_setsid(connection: Connection, rng: Random) -> None:
    """Leave daemons of its own."""

    def daemon() -> None:
        trying(os.setsid)
        nap(1)

    for _ in range(5):
        orphaned(daemon)


@deed
def orphans_that_die_oddly(connection: Connection, rng: Random) -> None:
    """Leave orphans that end by signals and with any status, many at once."""

    def end() -> None:
        if rng.random() < 0.5:
            os._exit(rng.randrange(256))
        os.kill(os.getpid(), rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGABRT, signal.SIGUSR2]))

    for _ in range(30):
        # Each inherits the generator as it is then.
        rng.random()
        orphaned(end)


@deed
def children_of_the_master(connection: Connection, rng: Random) -> None:
    """Clone processes whose parent is the master (CLONE_PARENT), which has never heard of them."""
    if ON_X86:
        for _ in range(40):
            if LIBC.syscall(SYS_CLONE, ctypes.c_long(CLONE_PARENT | signal.SIGCHLD), None, None, None, None) == 0:
                os._exit(rng.randrange(256))


@deed
def kill_itself(connection: Connection, rng: Random) -> None:
    """Die of a signal."""
    os.kill(os.getpid(), rng.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGTERM, 40, signal.SIGXCPU]))


@deed
def stop_itself(connection: Connection, rng: Random) -> None:
    """Stop, and be continued by a child after a while."""
    woken_later()
    os.kill(os.getpid(), signal.SIGSTOP)


@deed
def crash(connection: Connection, rng: Random) -> None:
    """Write to nowhere."""
    ctypes.memset(rng.choice([0, 8, 1 << 40]), 1, 8)


@deed
def odd_exit(connection: Connection, rng: Random) -> None:
    """Leave with a status that is none."""
    value: Any = rng.choice([2**31, -(2**31), 2**70, -1, 256, 65535, "a text", None, 3.5, (1, 2), True, b"bytes", "\ud800", "x" * 10**6])
    if rng.random() < 0.5 and isinstance(value, int) and abs(value) < 2**31:
        os._exit(value)
    raise SystemExit(value)


@deed
def become_a_program(connection: Connection, rng: Random) -> None:
    """Become another program in the middle of the session."""
    os.execv("/bin/sleep", ["poold: mold", "0.3"])


@deed
def become_a_privileged_program(connection: Connection, rng: Random) -> None:
    """Become a program of root's (set-user-ID), over whom the service user has no power."""
    os.execv("/bin/mount", ["mount", "--version"])


@deed
def games_with_namespaces(connection: Connection, rng: Random) -> str | None:
    """Be root in a namespace of its own, and try from there what was forbidden."""
    flags = rng.choice([0x10000000, 0x10000000 | 0x20000000, 0x10000000 | 0x20000, 0x10000000 | 0x40000000])
    if LIBC.unshare(flags) == 0:
        forked(lambda: nap(0.3))
        trying(os.setuid, 0)
        return look_into_others(connection, rng) or touch_the_master(connection, rng)
    return None


@deed
def forbidden_calls(connection: Connection, rng: Random) -> None:
    """Forbid itself nearly every system call (seccomp(2), strict): the next one is death."""
    LIBC.prctl(22, 1, 0, 0, 0)


@deed
def main_thread_ends(connection: Connection, rng: Random) -> None:
    """End the first thread and leave another: the process looks like a zombie and lives (proc(5))."""
    threading.Timer(1, os._exit, (3,)).start()
    if ON_X86:
        LIBC.syscall(SYS_EXIT, 0)


@deed
def deaf_for_a_while(connection: Connection, rng: Random) -> None:
    """Ignore and block every signal, then stay for a moment."""
    for number in signal.valid_signals():
        trying(signal.signal, number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    nap(1)


@deed
def alarm_in_every_line(connection: Connection, rng: Random) -> None:
    """Have a signal come all the time whose function raises, also in what poold does after the handler."""

    def burst(number: int, frame: object) -> None:
        raise OSError(rng.choice([errno.EINTR, errno.EPIPE, errno.EBADF]), "burst")

    signal.signal(signal.SIGALRM, burst)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        nap(0.2)
    except OSError:
        # One of many.
        return


@deed
def games_with_groups(connection: Connection, rng: Random) -> None:
    """Join other sessions and process groups, the master's, the mold's and a sibling's."""
    trying(os.setsid)
    for group in (os.getppid(), 1, 0, *siblings()):
        trying(os.setpgid, 0, group)
    trying(os.setpgid, forked(lambda: nap(0.5)), 0)
    trying(os.tcsetpgrp, 0, os.getpid())


@deed
def games_with_prctl(connection: Connection, rng: Random) -> None:
    """Take back what poold has asked of the kernel: no signal at the master's death, a name of its own, orphans for itself."""
    LIBC.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    LIBC.prctl(PR_SET_NAME, rng.randbytes(15), 0, 0, 0)
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    orphaned(lambda: nap(0.5)) if rng.random() < 0.5 else forked(lambda: nap(0.5))
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


@deed
def games_with_limits(connection: Connection, rng: Random) -> None:
    """Take its own limits away, one or all, and go on."""
    limits = [resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_STACK, resource.RLIMIT_MEMLOCK]
    for limit in rng.sample(limits, rng.randrange(1, len(limits) + 1)):
        trying(resource.setrlimit, limit, (0, 0))
    print("a line", flush=True)
    trying(connection.set_status, "limited")


@deed
def out_of_memory(connection: Connection, rng: Random) -> None:
    """Have no memory left, in the handler and after it."""
    bounded_memory(2 << 20)
    while True:
        KEPT.append(bytearray(rng.choice([1 << 20, 4096, 64])))


@deed
def burn_its_cpu_time(connection: Connection, rng: Random) -> None:
    """Come to the end of its CPU time."""
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    while True:
        pass


@deed
def threads_that_outlive(connection: Connection, rng: Random) -> None:
    """Leave threads, daemons and others, and hooks for the end."""
    for number in range(8):
        threading.Thread(target=nap, args=(1,), daemon=number % 2 == 0).start()
    atexit.register(nap, 0.2)
    atexit.register(lambda: 1 / 0)
    sys.stderr.write("threads are left\n")


@deed
def hooks_that_raise(connection: Connection, rng: Random) -> None:
    """Have hooks of the interpreter raise, in poold's own code too."""

    def burst(*arguments: object) -> NoReturn:
        raise RuntimeError("a hook")

    os.register_at_fork(before=burst, after_in_parent=burst, after_in_child=burst)
    sys.excepthook = sys.unraisablehook = threading.excepthook = burst
    sys.audit("hostile")
    if rng.random() < 0.5:
        sys.settrace(burst)
    sys.setprofile(burst)


# ---- Exceptions and streams -----------------------------------------------------------------------------------------------------


class SilentError(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class MutableError(BaseException):
    """An error that is none of Exception's, and whose class has a name like a line of the log."""


@deed
def odd_exceptions(connection: Connection, rng: Random) -> None:
    """Raise something whose text raises, is very long, is not text, or goes round in circles."""
    MutableError.__name__ = "x\x1b]0;owned\x07\n{}"
    ring = ValueError("ring")
    ring.__cause__ = RuntimeError("round")
    ring.__cause__.__cause__ = ring
    # Made when they are asked for: a group of ten thousand takes its time.
    kinds: list[Callable[[], BaseException]] = [
        SilentError,
        MutableError,
        GeneratorExit,
        KeyboardInterrupt,
        lambda: StopIteration(connection),
        lambda: ValueError("x" * 10**6),
        lambda: ValueError("\x1b]0;owned\x07\x1b[2J\r\n\0\u202e\ud800" * 100),
        lambda: ring,
        lambda: ExceptionGroup("many", [ValueError(str(n)) for n in range(1000)]),
        lambda: UnicodeDecodeError("utf-8", b"\xff" * 1000, 0, 1, "\ud800"),
        lambda: SystemExit(SilentError()),
        lambda: BrokenPipeError(errno.EPIPE, "of something else"),
        lambda: SyntaxError("x", ("\x1b[2J", -5, 10**9, "y\n" * 1000)),
        lambda: OSError(10**9, SilentError()),
    ]
    kind = rng.choice(kinds)
    raise kind()


class Stream:
    """A stream that does not work."""

    def __init__(self, rng: Random) -> None:
        self._error = rng.choice([RuntimeError, ValueError, OSError, KeyboardInterrupt, SystemExit, MemoryError, MutableError])

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error(name)


@deed
def broken_streams(connection: Connection, rng: Random) -> None:
    """Have no streams, closed ones, or some that raise."""
    for name in ("stdout", "stderr", "__stdout__", "__stderr__", "stdin"):
        kind = rng.choice(["none", "closed", "odd"])
        if kind == "closed":
            trying(getattr(sys, name).close)
        else:
            setattr(sys, name, None if kind == "none" else Stream(rng))
    if rng.random() < 0.5:
        raise ValueError("nowhere to say so")


@deed
def deep_recursion(connection: Connection, rng: Random) -> None:
    """Come to the end of the stack, or of memory."""
    bounded_memory(32 << 20)
    if rng.random() < 0.3:
        sys.setrecursionlimit(10**9)

    def down(n: int) -> int:
        return down(n + 1) + 1

    down(0)


@deed
def spoiled_interpreter(connection: Connection, rng: Random) -> None:
    """Spoil what poold's code in this process stands on: modules, functions, the way out."""
    import builtins

    def stay(code: int) -> None:
        sys.stderr.write("I do not leave\n")

    worker = sys.modules["poold.worker.main"]
    for _ in range(rng.randrange(1, 5)):
        kind = rng.randrange(6)
        if kind == 0:
            os._exit = stay  # type: ignore[assignment] # it is meant to be wrong
        elif kind == 1:
            sys.modules.clear()
        elif kind == 2:
            worker.__dict__["log"] = None
        elif kind == 3:
            builtins.__dict__.pop("isinstance", None)
        elif kind == 4:
            object.__setattr__(connection._worker, "exit_process", stay)
        else:
            worker.__dict__["_send_or_exit"] = None


# ---- What it may say to poold ---------------------------------------------------------------------------------------------------


@deed
def very_many_statuses(connection: Connection, rng: Random) -> None:
    """Set its status a hundred thousand times, to NULs and what cannot be encoded."""
    texts = ["\0" * 50, "x" * 300, "\ud800\udfff", "\x1b[2J\r\n", "", "ä€𐍈" * 80]
    for number in range(100_000):
        connection.set_status(texts[number % len(texts)])


@deed
def odd_statuses(connection: Connection, rng: Random) -> None:
    """Set a status that is very long, or none."""
    for text in ("y" * 10**6, "\0" * 10**6, "\u202e\u200b" * 1000, None, 5, b"bytes", SilentError()):
        try:
            connection.set_status(text)  # type: ignore[arg-type] # it is meant to be wrong
        except Exception as error:
            KEPT.append(error)
    nap(0.1)


@deed
def odd_deadlines(connection: Connection, rng: Random) -> None:
    """Ask for time that there is not."""
    for seconds in (float("nan"), float("inf"), float("-inf"), -1, 0, 1e308, -1e308, 5e-324, 10**400, "x", None):
        try:
            connection.extend_deadline(seconds)  # type: ignore[arg-type] # it is meant to be wrong
        except (TypeError, OverflowError, ValueError) as error:
            KEPT.append(error)
    nap(0.1)


@deed
def odd_ends(connection: Connection, rng: Random) -> None:
    """Close, detach or replace its connection, then return."""
    kind = rng.randrange(5)
    connection.writer.write(b"kept back")
    if kind == 0:
        connection.close()
        connection.close()
    elif kind == 1:
        connection.socket.detach()
    elif kind == 2:
        connection.socket = None  # type: ignore[assignment] # it is meant to be wrong
    elif kind == 3:
        os.close(connection.socket.fileno())
    else:
        connection.writer.detach()


@deed
def print_long_lines(connection: Connection, rng: Random) -> None:
    """Print lines of a megabyte, with and without an end."""
    print("x" * (1 << 20))
    sys.stderr.write("y" * (1 << 20))
    os.write(2, b"z" * (1 << 16))


@deed
def print_many_lines(connection: Connection, rng: Random) -> None:
    """Print five thousand lines."""
    for number in range(5000):
        os.write(1, b"line %d\n" % number)


@deed
def forge_log_lines(connection: Connection, rng: Random) -> None:
    """Print lines that look like poold's own; none may be taken for one."""
    for start in ("", "\r", "\x1b[2K", "x\n", "\0"):
        os.write(2, f'{start}{{"time": "2026-01-01T00:00:00.000Z", "level": "error", "event": "forged"}}\n'.encode())
    os.write(2, b"<3>2026-01-01T00:00:00.000Z error forged pid=1\n")


@deed
def print_escapes(connection: Connection, rng: Random) -> None:
    """Print what a terminal obeys, and what is no text."""
    os.write(2, b"\x1b]0;owned\x07\x1b[2J\x1b[31m \xff\xfe\0\r\x08\x9b2J \xe2\x80\xae\n")
    os.write(2, rng.randbytes(3000))


# ---- Reaching out ---------------------------------------------------------------------------------------------------------------


def siblings() -> list[int]:
    """Return the other processes of the master, the mold among them; only looked at, never signalled."""
    parent, found = os.getppid(), []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                # It has ended.
                continue
            if int(fields[1]) == parent:
                found.append(int(name))
    return found


def opened(path: str) -> bool:
    """Say whether a file of /proc tells anything: one of a process that is ending can be opened by everybody, and is empty."""
    fd = trying(os.open, path, os.O_RDONLY)
    if fd is None:
        return False
    try:
        return os.read(fd, 1) != b""
    except OSError:
        # There is memory behind it, if not at this place.
        return True
    finally:
        os.close(fd)


@deed
def look_into_others(connection: Connection, rng: Random) -> str | None:
    """Open the memory, the descriptors and the environment of the master, the mold and its siblings."""
    got = []
    for pid in (os.getppid(), *siblings()):
        comm = trying(lambda pid=pid: Path(f"/proc/{pid}/comm").read_text().strip())
        if comm == "leftover" or trying(lambda pid=pid: os.stat(f"/proc/{pid}/fd").st_uid) == os.getuid():
            # A session that has made itself visible, or what one has left behind; its own affair.
            continue
        got += [f"{pid} {comm}: {name}" for name in ("mem", "environ", "maps") if opened(f"/proc/{pid}/{name}")]
        if trying(os.listdir, f"/proc/{pid}/fd") is not None:
            got.append(f"{pid} {comm}: fd")
        word = ctypes.create_string_buffer(8)
        local, remote = (ctypes.c_void_p * 2)(ctypes.addressof(word), 8), (ctypes.c_void_p * 2)(0x400000, 8)
        if LIBC.syscall(SYS_PROCESS_VM_READV, pid, local, 1, remote, 1, 0) >= 0 or ctypes.get_errno() == errno.EFAULT:
            got.append(f"{pid} {comm}: process_vm_readv")
    return f"GOT {got}" if got else None


@deed
def take_descriptors_of_others(connection: Connection, rng: Random) -> str | None:
    """Copy descriptors out of the master, the mold and its siblings (pidfd_getfd(2))."""
    got = []
    for pid in (os.getppid(), *siblings()):
        if trying(lambda pid=pid: os.stat(f"/proc/{pid}/fd").st_uid) == os.getuid():
            continue
        pidfd = trying(os.pidfd_open, pid)
        for number in range(32) if pidfd is not None else ():
            fd = LIBC.syscall(SYS_PIDFD_GETFD, pidfd, number, 0)
            if fd >= 0:
                got.append(f"{pid}: {number} {trying(os.readlink, f'/proc/self/fd/{fd}')}")
    return f"GOT {got}" if got else None


@deed
def touch_the_master(connection: Connection, rng: Random) -> str | None:
    """Signal, limit, slow down and move the master, which is another user's."""
    master, got = os.getppid(), []
    acts: dict[str, Callable[[], object]] = {
        "kill": lambda: os.kill(master, signal.SIGTERM),
        "stop": lambda: os.kill(master, signal.SIGSTOP),
        "limit": lambda: resource.prlimit(master, resource.RLIMIT_NOFILE, (3, 3)),
        "slow": lambda: os.setpriority(os.PRIO_PROCESS, master, 19),
        "move": lambda: os.sched_setaffinity(master, {0}),
        "groups": lambda: os.setgroups([0]),
    }
    for what, act in acts.items():
        try:
            act()
        except OSError:
            # As it should be.
            continue
        got.append(what)
    return f"GOT {got}" if got else None


@deed
def unlink_what_it_can(connection: Connection, rng: Random) -> str | None:
    """Remove, rename and replace poold's files."""
    folder = Path(str(connection.options["folder"]))
    got = []
    for path in [*folder.glob("*"), *folder.glob("run/*")]:
        for act in (path.unlink, path.rmdir, lambda path=path: path.rename(folder / "moved"), lambda path=path: path.chmod(0o777)):
            try:
                act()
            except OSError:
                # As it should be.
                continue
            got.append(str(path))
    if trying(os.symlink, "/etc/passwd", str(folder / "link")) is not None or (folder / "link").is_symlink():
        got.append("link")
    return f"GOT {got}" if got else None


@deed
def folder_that_is_gone(connection: Connection, rng: Random) -> None:
    """Be in a folder that there is no more."""
    folder = f"{connection.options['scratch']}/{os.getpid()}"
    os.mkdir(folder)
    os.chdir(folder)
    os.rmdir(folder)
    raise ValueError("from nowhere")


@deed
def talk_to_control(connection: Connection, rng: Random) -> str | None:
    """Ask the control socket, as a user who may not."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(connection.options["control"]))
            client.sendall(b'{"verb": "stop"}\n')
            answer = client.recv(4096)
        except OSError:
            return None
    return f"GOT an answer: {answer!r}" if b'"ok": true' in answer else None


@deed
def talk_to_metrics(connection: Connection, rng: Random) -> None:
    """Scrape as often as it can, and keep some requests open."""
    address = ("127.0.0.1", int(str(connection.options["metrics"])))
    for number in range(12):
        client = trying(socket.create_connection, address, 2)
        if client is not None:
            trying(client.sendall, b"GET /metrics HTTP/1.0\r\n\r\n" if number % 3 else b"GET /me")
            KEPT.append(client)
    nap(0.3)


@deed
def talk_to_the_listener(connection: Connection, rng: Random) -> None:
    """Be its own service's client."""
    for _ in range(4):
        client = trying(socket.create_connection, connection.socket.getsockname()[:2], 10)
        if client is not None:
            KEPT.append(client)
            trying(client.sendall, b"echo inside\n")
    for client in KEPT:
        if trying(client.recv, 100) not in (b"inside\n", None, b""):
            raise RuntimeError("another one's answer")


@deed
def flood_its_client(connection: Connection, rng: Random) -> None:
    """Write megabytes, with and without a buffer, and leave at once."""
    connection.socket.settimeout(5)
    trying(connection.socket.sendall, rng.randbytes(1 << 20))
    connection.writer.write(b"x" * 100_000)

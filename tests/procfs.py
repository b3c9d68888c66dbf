"""Processes as /proc shows them, and what is done to them by pid: stopped, continued, waited for."""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.waiting import eventually

# The C library keeps two signals for itself and its posix_spawn() leaves them ignored: they are nobody else's business.
ORDINARY = sum(1 << (number - 1) for number in signal.valid_signals())


def stat_fields(pid: int) -> list[str] | None:
    """Return /proc/PID/stat from the state on, None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def status_fields(pid: int) -> dict[str, str]:
    """Return /proc/PID/status, by the names of its lines."""
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}


def state(pid: int) -> str:
    """Return the letter of a process's state (proc(5)), "" when there is no such process."""
    fields = stat_fields(pid)
    return fields[0] if fields is not None else ""


def alive(pid: int) -> bool:
    """Say whether a process is there and not a zombie."""
    fields = stat_fields(pid)
    return fields is not None and fields[0] != "Z"


def gone(pid: int) -> bool:
    """Say whether a process has ended and has been waited for."""
    return stat_fields(pid) is None


def has_state(pid: int, letters: str) -> None:
    """Wait until a process is in one of these states."""
    eventually(lambda: state(pid) in letters.split(), f"{pid} is {letters}")


def has_gone(pid: int) -> None:
    """Wait until a process has ended and has been waited for."""
    eventually(lambda: gone(pid), f"{pid} is gone")


def title(pid: int) -> str:
    """Return a process's title as ps shows it."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")


def shown(pid: int) -> str:
    """Return a process's title, "" when it has ended."""
    try:
        return title(pid)
    except (FileNotFoundError, ProcessLookupError):
        return ""


def shows(pid: int, *beginnings: str) -> bool:
    """Say whether a process is there and its title begins like one of these."""
    return shown(pid).startswith(beginnings)


def processes() -> Iterable[int]:
    """Return every pid."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def children_of(pid: int) -> list[int]:
    """Return the pids of a process's children, zombies included."""
    return [child for child in processes() if (fields := stat_fields(child)) is not None and int(fields[1]) == pid]


def descendants(pid: int) -> list[int]:
    """Return the pids of a process's children, and of theirs."""
    children: dict[int, list[int]] = {}
    for process in processes():
        if (fields := stat_fields(process)) is not None:
            children.setdefault(int(fields[1]), []).append(process)
    found = list(children.get(pid, []))
    for child in found:
        # The list grows while it is gone through.
        found += children.get(child, [])
    return found


def zombies_of(pid: int) -> list[int]:
    """Return the pids of a process's dead children that it has not waited for."""
    return [child for child in children_of(pid) if state(child) == "Z"]


def open_files(pid: int) -> dict[int, str]:
    """Return a process's descriptors and what they are."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def held(pid: int) -> set[int]:
    """Return the numbers of the descriptors that a process keeps: not those through which it looks at /proc just now."""
    return {fd for fd, file in open_files(pid).items() if not file.startswith("/proc/")}


def open_flags(pid: int, fd: int) -> int:
    """Return the flags that a process's descriptor was opened with (proc(5), fdinfo)."""
    lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text(errors="replace").splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))


def signal_masks(pid: int) -> dict[str, int]:
    """Return the signal masks of a process: SigBlk, SigIgn, SigCgt."""
    fields = status_fields(pid)
    return {name: int(fields[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")}


def dispositions(pid: int) -> dict[str, int]:
    """Return the signal masks of a process, for the signals that programs may use."""
    return {name: mask & ORDINARY for name, mask in signal_masks(pid).items()}


def ticks(pid: int) -> int:
    """Return how many clock ticks of CPU time a process has used."""
    fields = stat_fields(pid)
    assert fields is not None
    return int(fields[11]) + int(fields[12])


def smaps_rollup(pid: int) -> str:
    """Return what a process's memory is made of (proc(5), smaps_rollup)."""
    return Path(f"/proc/{pid}/smaps_rollup").read_text(errors="replace")


def kilobytes(text: str, *names: str) -> int:
    """Return the sum of these lines of a smaps_rollup."""
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(names))


def private_kilobytes(pid: int) -> int:
    """Return what a process has for itself alone."""
    return kilobytes(smaps_rollup(pid), "Private_Clean", "Private_Dirty")


def portrait(pid: int) -> str:
    """Return what /proc knows of a process that should not be there."""
    lines = [f"--- process {pid}"]
    for name in ("cmdline", "wchan", "syscall", "stack", "status"):
        try:
            lines.append(f"{name}: {Path(f'/proc/{pid}/{name}').read_bytes().replace(bytes(1), b' ').decode(errors='replace')}")
        except OSError as error:
            lines.append(f"{name}: {error.strerror}")
    with contextlib.suppress(OSError):
        lines += [f"{fd}: {file}" for fd, file in open_files(pid).items()]
    return "\n".join(lines)


def take_orphans(before: Iterable[int]) -> None:
    """Wait for the ends of all that has fallen to this process, and take their exits; what was there before is somebody else's."""
    known, mine = set(before), os.getpid()

    def left() -> list[int]:
        return [pid for pid in children_of(mine) if pid not in known]

    def none_left() -> bool:
        pids = left()
        for pid in pids:
            os.waitpid(pid, os.WNOHANG)
        return not pids

    try:
        eventually(none_left, "the end of what a master left behind")
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *map(portrait, left())])) from error


def freeze(pid: int) -> None:
    """Stop a process, and wait until it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: state(pid) in ("T", "Z", ""), f"process {pid} stops")


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Keep a process stopped; it may be killed meanwhile."""
    freeze(pid)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

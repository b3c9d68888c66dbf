"""Who may hold what: the table, and functions that hold living processes to it.

Looked at from outside, as root: /proc/PID/fd, fdinfo, maps, status (proc(5)). A process is told by its title and by its parent.
`broken_rights(master)` returns one sentence for each fact that the table does not allow. A look takes a while and processes go on meanwhile
(a spare is handed a session, a mold closes what it has read), so only what two looks at the same process say is said.

With `connections_per_child` other than 1 a serving worker keeps its channel: say so with `reused=True`.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tests.procfs import descendants, stat_fields, state, title
from tests.waiting import eventually


class Holder(StrEnum):
    """A kind of process."""

    MASTER = "master"
    MOLD = "mold"
    SPARE = "spare"
    SESSION = "serving worker"
    EXPORTER = "exporter"
    LOGGER = "logger"


class Thing(StrEnum):
    """What a descriptor or a mapping may be of."""

    NULL = "/dev/null"
    STREAM = "the stream that is printed to"
    OWN_STREAM = "the pipe of poold's own lines"
    REAL_STREAM = "the log behind the logger"
    LISTENER = "a listening socket"
    CONTROL = "the control socket"
    METRICS = "the metrics listener"
    CONNECTION = "a connection"
    CHANNEL = "a channel"
    PAIR = "an end of a stream pair"
    DATAGRAM = "a datagram socket"
    SELECTOR = "a selector"
    PIPE = "a pipe"
    PIDFD = "a process's descriptor"
    COUNTERS = "the counters"
    TABLE = "the table"
    PHASE = "the phase page"
    ACTIVITY = "activity memory"
    SETTINGS = "the settings of a start"
    MEMORY = "another memory file"
    OTHER = "something else"


MANY = 1 << 20
# What tests call a process that user code has forked: it has the title of who forked it, and may have fallen to the master.
LEFTOVER = "leftover"


@dataclass(frozen=True, slots=True)
class Right:
    """Of this thing this holder has `least` to `most`; `access` is r, w or rw, "" for any; `during` says from when to when."""

    holder: Holder
    thing: Thing
    least: int
    most: int
    access: str
    during: str
    why: str


ALWAYS = "from its start to its end"

DESCRIPTORS = (
    Right(Holder.MASTER, Thing.NULL, 0, 1, "", ALWAYS, "0, as the service manager gave it"),
    Right(
        Holder.MASTER, Thing.STREAM, 1, MANY, "", ALWAYS, "1 and 2 as they were given; or both ends of a pipe that loggers come and go at"
    ),
    Right(Holder.MASTER, Thing.OWN_STREAM, 0, MANY, "", "while there are loggers", "the same, of a pipe that no user's code has"),
    Right(Holder.MASTER, Thing.REAL_STREAM, 0, 3, "", "while there are loggers", "1 and 2 as they were given; the next program's"),
    Right(Holder.MASTER, Thing.LISTENER, 0, MANY, "rw", "from the first bind to the drain", "it alone accepts"),
    Right(Holder.MASTER, Thing.CONTROL, 0, 1, "rw", ALWAYS, "it answers operators"),
    Right(Holder.MASTER, Thing.METRICS, 0, 2, "rw", ALWAYS, "bound here, so that an exporter can be replaced; two while a reload moves it"),
    Right(
        Holder.MASTER,
        Thing.CONNECTION,
        0,
        MANY,
        "rw",
        "from accept to the acknowledgement",
        "a client whose worker dies before gets another",
    ),
    Right(Holder.MASTER, Thing.CHANNEL, 0, MANY, "rw", "of each mold, birth and spare", "orders, assignments, reports"),
    Right(Holder.MASTER, Thing.PAIR, 0, MANY, "rw", ALWAYS, "signals' wakeup, and the exporter's lifeline"),
    Right(Holder.MASTER, Thing.DATAGRAM, 0, 2, "rw", "while it says something", "sd_notify(3)"),
    Right(Holder.MASTER, Thing.SELECTOR, 1, 1, "rw", ALWAYS, "its one place to wait"),
    Right(Holder.MASTER, Thing.PIPE, 0, MANY, "", "while a trial or a logger runs", "verdicts, and what others print"),
    Right(Holder.MASTER, Thing.PIDFD, 0, MANY, "", "while it ends a process", "a pid may be another's by then"),
    Right(Holder.MASTER, Thing.COUNTERS, 1, 4, "", ALWAYS, "written by it alone; a read-only one for clients of the control socket"),
    Right(Holder.MASTER, Thing.TABLE, 1, 4, "", ALWAYS, "as the counters"),
    Right(Holder.MASTER, Thing.ACTIVITY, 0, MANY, "", "of each worker", "it reads there what a session says"),
    Right(Holder.MASTER, Thing.PHASE, 0, 4, "", ALWAYS, "written by it alone; a read-only one for molds"),
    Right(Holder.MASTER, Thing.SETTINGS, 0, 4, "", "while it starts a process", "what that process is to know"),
    Right(Holder.MASTER, Thing.MEMORY, 0, 16, "", "while a trial or an upgrade runs", "settings, verdicts, the state document"),
    Right(Holder.MOLD, Thing.NULL, 1, 1, "", ALWAYS, "0"),
    Right(Holder.MOLD, Thing.STREAM, 2, 2, "w", ALWAYS, "1 and 2; nobody's to read"),
    Right(Holder.MOLD, Thing.CHANNEL, 1, 2, "rw", ALWAYS, "its own; an order's as well, until the clone has it"),
    Right(Holder.MOLD, Thing.ACTIVITY, 0, 1, "rw", "from an order to its clone", "it is the clone's"),
    Right(Holder.SPARE, Thing.NULL, 1, 1, "", ALWAYS, "0"),
    Right(Holder.SPARE, Thing.STREAM, 2, 2, "w", ALWAYS, "1 and 2; nobody's to read"),
    Right(Holder.SPARE, Thing.CHANNEL, 1, 1, "rw", "from its birth to its last acknowledgement", "its own"),
    Right(Holder.SPARE, Thing.ACTIVITY, 0, 1, "rw", ALWAYS, "its own page; none where a program serves"),
    Right(Holder.SESSION, Thing.NULL, 1, 1, "", ALWAYS, "0"),
    Right(Holder.SESSION, Thing.STREAM, 2, 2, "w", ALWAYS, "1 and 2; nobody's to read"),
    Right(Holder.SESSION, Thing.CONNECTION, 0, 1, "rw", "from the hand-over to its end", "its own client"),
    Right(
        Holder.SESSION, Thing.CHANNEL, 0, 0, "rw", "never, where a worker has one session", "what it says there is about the next session"
    ),
    Right(Holder.SESSION, Thing.ACTIVITY, 0, 1, "rw", ALWAYS, "its own page; none where a program serves"),
    Right(Holder.EXPORTER, Thing.NULL, 1, 1, "", ALWAYS, "0"),
    Right(Holder.EXPORTER, Thing.STREAM, 2, 2, "w", ALWAYS, "1 and 2; sessions may have the exporter's user"),
    Right(Holder.EXPORTER, Thing.METRICS, 1, 1, "rw", ALWAYS, "it accepts scrapers"),
    Right(Holder.EXPORTER, Thing.PAIR, 1, 3, "rw", ALWAYS, "its lifeline; both ends of what wakes its loop"),
    Right(Holder.EXPORTER, Thing.SELECTOR, 0, 1, "rw", "once it answers", "its one place to wait"),
    Right(Holder.EXPORTER, Thing.CONNECTION, 0, 65, "rw", "while it answers", "scrapers; one more while it closes one for another"),
    Right(Holder.EXPORTER, Thing.COUNTERS, 0, 1, "r", "until it has mapped them", "what it shows"),
    Right(Holder.LOGGER, Thing.NULL, 1, 1, "", ALWAYS, "0"),
    Right(Holder.LOGGER, Thing.REAL_STREAM, 2, 2, "w", ALWAYS, "1 and 2: it alone writes there"),
    Right(Holder.LOGGER, Thing.STREAM, 1, 1, "r", ALWAYS, "what user code prints"),
    Right(Holder.LOGGER, Thing.OWN_STREAM, 1, 1, "r", ALWAYS, "what poold's own processes say"),
    Right(Holder.LOGGER, Thing.CHANNEL, 1, 1, "rw", ALWAYS, "its lifeline"),
    Right(Holder.LOGGER, Thing.SELECTOR, 0, 1, "rw", ALWAYS, "its one place to wait"),
)

# Shared mappings. `access` is what they are mapped for; a right to ask for more later (proc(5), VmFlags mw) counts as w.
MAPPINGS = (
    Right(Holder.MASTER, Thing.COUNTERS, 1, 1, "rw", ALWAYS, "written by it alone"),
    Right(Holder.MASTER, Thing.TABLE, 1, 1, "rw", ALWAYS, "written by it alone"),
    Right(Holder.MASTER, Thing.PHASE, 1, 1, "rw", ALWAYS, "written by it alone"),
    Right(Holder.MOLD, Thing.PHASE, 1, 1, "r", ALWAYS, "once, for all its workers"),
    Right(Holder.SPARE, Thing.PHASE, 1, 1, "r", ALWAYS, "says that a drain has begun"),
    Right(Holder.SESSION, Thing.PHASE, 1, 1, "r", ALWAYS, "says that a drain has begun"),
    Right(Holder.EXPORTER, Thing.COUNTERS, 1, 1, "r", ALWAYS, "what it shows"),
)


def table(rights: Iterable[Right]) -> str:
    """Return rows as the table that people read, in Markdown."""

    def many(right: Right) -> str:
        most = "any" if right.most == MANY else str(right.most)
        return most if str(right.least) == most else f"{right.least} to {most}"

    rows = [
        f"| {right.holder} | {right.thing} | {many(right)} | {right.access or 'any'} | {right.during} | {right.why} |" for right in rights
    ]
    return "\n".join(["| who | what | how many | access | from when to when | why |", "|---|---|---|---|---|---|", *rows]) + "\n"


# Nothing of these is in any process below the master but in those that DESCRIPTORS names, whoever started it: sessions may open what they
# like by themselves, but what they have of these is poold's.
MASTERS_OWN = {
    Thing.LISTENER,
    Thing.CONTROL,
    Thing.METRICS,
    Thing.COUNTERS,
    Thing.TABLE,
    Thing.PHASE,
    Thing.CHANNEL,
    Thing.PAIR,
    Thing.OWN_STREAM,
}
# What is one process's and nobody else's, but for the master and for what that process has forked.
EXCLUSIVE = {Thing.CONNECTION, Thing.CHANNEL, Thing.ACTIVITY}


@dataclass(frozen=True, slots=True)
class Held:
    """One descriptor: what it is, its access, and what tells it from others (device and inode)."""

    fd: int
    thing: Thing
    access: str
    identity: tuple[int, int]
    link: str


@dataclass(slots=True)
class Process:
    """A living process as it was looked at."""

    pid: int
    started: str
    parent: int
    holder: Holder | None
    status: Mapping[str, str]
    session: int
    visible: bool
    held: list[Held] = field(default_factory=list)
    mapped: list[tuple[Thing, str, tuple[int, int]]] = field(default_factory=list)

    @property
    def uids(self) -> list[int]:
        """Real, effective, saved and file system uid."""
        return [int(word) for word in self.status["Uid"].split()]

    def mask(self, name: str) -> int:
        """Return a mask of signals or of capabilities."""
        return int(self.status[name], 16)


@dataclass(frozen=True, slots=True)
class Claim:
    """A fact about the status of each such process; `holds` is given the process and its master.

    `ready`: a handler's import may make it untrue of its mold for a while, but no worker is born before it is true again.
    """

    holders: tuple[Holder, ...]
    what: str
    holds: Callable[[Process, Process], bool]
    why: str
    ready: bool = False


CHILDREN = (Holder.MOLD, Holder.SPARE, Holder.SESSION, Holder.EXPORTER)
WORKERS = (Holder.SPARE, Holder.SESSION)
SIGPIPE_BIT = 1 << 12
# The C library keeps two signals for itself (nptl(7)).
ORDINARY = ~(0b11 << 31)


def dropped(master: Process, process: Process) -> bool:
    """Say whether a process runs as another user than its master."""
    return process.uids[0] != master.uids[0]


CLAIMS = (
    Claim(CHILDREN, "all uids are one", lambda own, master: len(set(own.uids)) == 1, "a saved uid is a way back"),
    Claim(
        CHILDREN,
        "no capability",
        lambda own, master: not dropped(master, own) or not any(own.mask(name) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")),
        "a service user has none",
    ),
    Claim(
        (Holder.MOLD, *WORKERS, Holder.EXPORTER, Holder.LOGGER),
        "cannot be looked into by its own user",
        lambda own, master: not dropped(master, own) or not own.visible,
        "one session must not read another's memory (prctl(2), PR_SET_DUMPABLE)",
    ),
    Claim(CHILDREN, "is the master's child", lambda own, master: own.parent == master.pid, "statuses and usage arrive at the table"),
    Claim(CHILDREN, "leads a session of its own", lambda own, master: own.session == own.pid, "a terminal's signals are the master's"),
    Claim(tuple(Holder), "is not traced", lambda own, master: own.status["TracerPid"].strip() == "0", "nobody watches another"),
    Claim(
        (Holder.MASTER, *CHILDREN),
        "no signal is blocked",
        lambda own, master: own.mask("SigBlk") == 0,
        "a blocked TERM is never heard",
        ready=True,
    ),
    Claim(
        (Holder.MASTER, Holder.MOLD, *WORKERS),
        "no signal is ignored",
        lambda own, master: own.mask("SigIgn") & ORDINARY == 0,
        "it would stay ignored in every program that it starts",
        ready=True,
    ),
    Claim(
        (Holder.MOLD, *WORKERS),
        "no signal is caught but SIGPIPE",
        lambda own, master: own.mask("SigCgt") & ORDINARY & ~SIGPIPE_BIT == 0,
        "TERM must do what it does to any process, and a closed pipe is an error and not death",
        ready=True,
    ),
)


# ---- Looking --------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sockets:
    """The kernel's tables of sockets, by inode (proc(5), /proc/net)."""

    tcp: dict[int, tuple[str, int]]
    unix: dict[int, tuple[int, bool, str]]

    @classmethod
    def read(cls, pid: int) -> "Sockets":
        """Read those of the network that a process is in."""
        tcp, unix = {}, {}
        for name in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{name}").read_text(errors="replace").splitlines()[1:]:
                words = line.split()
                tcp[int(words[9])] = words[3], int(words[1].rpartition(":")[2], 16)
        for line in Path(f"/proc/{pid}/net/unix").read_text(errors="replace").splitlines()[1:]:
            words = line.split(maxsplit=7)
            unix[int(words[6])] = int(words[4], 16), bool(int(words[3], 16) & 1 << 16), words[7] if len(words) > 7 else ""
        return cls(tcp, unix)

    def know(self, inode: int) -> bool:
        """Say whether a socket is in a table; a TCP socket that is closed on both ends is in none."""
        return inode in self.unix or inode in self.tcp

    def thing(self, inode: int, *, control: str, metrics: int) -> Thing:
        """Say what a socket is; what is in no table was a TCP connection."""
        if inode in self.unix:
            kind, listens, path = self.unix[inode]
            if listens:
                return Thing.CONTROL if path == control else Thing.LISTENER
            if kind == 5:
                return Thing.CHANNEL
            if kind == 2:
                return Thing.DATAGRAM
            return Thing.CONNECTION if path else Thing.PAIR
        state, port = self.tcp.get(inode, ("", 0))
        if state == "0A":
            return Thing.METRICS if port == metrics else Thing.LISTENER
        return Thing.CONNECTION


MEMORIES = {"counters": Thing.COUNTERS, "table": Thing.TABLE, "phase": Thing.PHASE, "activity": Thing.ACTIVITY, "settings": Thing.SETTINGS}


def memory(link: str) -> Thing:
    """Say what a memory file is, by its name."""
    name = re.match(r"/memfd:poold-(\w+)", link)
    return MEMORIES.get(name[1], Thing.MEMORY) if name else Thing.MEMORY


@dataclass(frozen=True, slots=True)
class View:
    """What a look knows before it looks: whose processes, their program, what the log's streams are, which sockets are which."""

    master: int
    program: str
    streams: Mapping[str, Thing]
    control: str
    metrics: int


def _thing(view: View, link: str, inode: int, sockets: Sockets) -> Thing:
    if link == "/dev/null":
        return Thing.NULL
    if link in view.streams:
        return view.streams[link]
    if link.startswith("socket:"):
        return sockets.thing(inode, control=view.control, metrics=view.metrics)
    if link.startswith("/memfd:"):
        return memory(link)
    for beginning, thing in (("pipe:", Thing.PIPE), ("anon_inode:[eventpoll]", Thing.SELECTOR), ("anon_inode:[pidfd]", Thing.PIDFD)):
        if link.startswith(beginning):
            return thing
    return Thing.OTHER


def _descriptors(view: View, pid: int) -> list[Held]:
    sockets = Sockets.read(pid)
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{name}")
            status = os.stat(f"/proc/{pid}/fd/{name}")
            if link.startswith("socket:") and not sockets.know(status.st_ino):
                # It is newer than the tables, or closed by now.
                sockets = Sockets.read(pid)
                if os.readlink(f"/proc/{pid}/fd/{name}") != link:
                    continue
            flags = next(
                line for line in Path(f"/proc/{pid}/fdinfo/{name}").read_text(errors="replace").splitlines() if line.startswith("flags:")
            )
        except OSError:
            # It has been closed.
            continue
        access = ("r", "w", "rw")[int(flags.split()[1], 8) & 3]
        thing = _thing(view, link, status.st_ino, sockets)
        found.append(Held(int(name), thing, access, (status.st_dev, status.st_ino), link))
    return found


AREA = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ (\S+) (\d+) +(.*)$")


def _mappings(pid: int) -> list[tuple[Thing, str, tuple[int, int]]]:
    """Return the shared mappings of memory files, and of other files that may be written to."""
    found = []
    area: re.Match[str] | None = None
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        if match := AREA.match(line):
            area = match if match[1][3] == "s" else None
        elif area is not None and line.startswith("VmFlags:"):
            access = "rw" if "mw" in line.split() else "r"
            major, _, minor = area[2].partition(":")
            thing = memory(area[4]) if area[4].startswith("/memfd:") else Thing.OTHER
            if thing is not Thing.OTHER or access == "rw":
                found.append((thing, access, (os.makedev(int(major, 16), int(minor, 16)), int(area[3]))))
    return found


def _holder(view: View, pid: int, parent: int) -> Holder | None:
    """Say what kind of process this is, by its title; None for what sessions have started."""
    if pid == view.master:
        return Holder.MASTER
    shown = title(pid)
    if Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() == LEFTOVER:
        return None
    if parent != view.master or not shown.startswith("poold: ") or os.readlink(f"/proc/{pid}/exe") != view.program:
        return None
    word = shown.split()[1]
    if word in ("mold", "exporter", "logger", "spare"):
        return Holder(word)
    return None if word in ("trial", "master") else Holder.SESSION


def streams_of(master: int) -> dict[str, Thing]:
    """Return what the links of a master's streams are: with both ends of the pipe at 2 it has loggers, and a second such pipe."""
    ends: dict[str, set[str]] = {}
    for name in os.listdir(f"/proc/{master}/fd"):
        try:
            link, mode = os.readlink(f"/proc/{master}/fd/{name}"), os.lstat(f"/proc/{master}/fd/{name}").st_mode
        except OSError:
            # It has been closed.
            continue
        # The link's own mode says what the descriptor is open for (proc(5)).
        ends.setdefault(link, set()).update(end for end, bit in (("r", 0o400), ("w", 0o200)) if mode & bit)
    one, two = (os.readlink(f"/proc/{master}/fd/{fd}") for fd in (1, 2))
    pipes = {link for link, both in ends.items() if link.startswith("pipe:") and both == {"r", "w"}}
    if two not in pipes:
        return {one: Thing.STREAM, two: Thing.STREAM}
    return {one: Thing.REAL_STREAM} | dict.fromkeys(pipes, Thing.STREAM) | {two: Thing.OWN_STREAM}


def look(master: int, *, metrics: int = 0, control: str = "") -> dict[int, Process]:
    """Return the master and everything below it, by pid. `metrics` is the port of the metrics listener, `control` the control socket."""
    view = View(master, os.readlink(f"/proc/{master}/exe"), streams_of(master), control, metrics)
    found = {}
    for pid in (master, *descendants(master)):
        try:
            found[pid] = _look_at(view, pid)
        except (OSError, IndexError, KeyError, StopIteration):
            # It has ended meanwhile, or is about to.
            continue
    return found


def _look_at(view: View, pid: int) -> Process:
    fields = stat_fields(pid)
    if fields is None or fields[0] in "ZX":
        raise ProcessLookupError(pid)
    holder = _holder(view, pid, int(fields[1]))
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    visible = os.stat(f"/proc/{pid}/fd").st_uid == int(status["Uid"].split()[1]) != 0
    process = Process(pid, fields[19], int(fields[1]), holder, status, int(fields[3]), visible)
    process.held, process.mapped = _descriptors(view, pid), _mappings(pid)
    if _holder(view, pid, int(fields[1])) is not holder:
        raise ProcessLookupError("it became something else meanwhile")
    return process


# ---- Judging --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Breach:
    """A fact that the table does not allow. What tells it from another one is `pid`, `started` and `fact`; `detail` is of the moment."""

    pid: int
    started: str
    fact: str
    detail: str = field(default="", compare=False)


def _against(table: Iterable[Right], process: Process, things: Iterable[tuple[Thing, str]], what: str) -> list[str]:
    """Return what a process has that its rows do not allow, or lacks."""
    wrong = []
    rows = {row.thing: row for row in table if row.holder is process.holder}
    counts = Counter(thing for thing, _ in things)
    for thing, access in things:
        if thing not in rows:
            wrong.append(f"has {thing} ({access}) as a {what}: no row of the table allows it")
        elif rows[thing].access and set(access) - set(rows[thing].access):
            wrong.append(f"has {access} and not only {rows[thing].access} of {thing} as a {what}")
    for thing, row in rows.items():
        if not row.least <= counts[thing] <= row.most:
            wrong.append(f"has {counts[thing]} times {thing} as a {what}, and not {row.least} to {row.most} ({row.why})")
    return wrong


def _strict(process: Process, reused: bool) -> list[str]:
    """Hold a process that runs poold's code only, and an honest handler's, to its rows."""
    # Whoever looks at /proc has it open at that moment; a master also reads files and folders of the settings.
    unspoken = {Thing.OTHER} if process.holder is Holder.MASTER else set()
    things = [(held.thing, held.access) for held in process.held if not held.link.startswith("/proc/") and held.thing not in unspoken]
    if reused and process.holder is Holder.SESSION and (Thing.CHANNEL, "rw") in things:
        things.remove((Thing.CHANNEL, "rw"))
    # Of what workers say the master maps as much as it likes.
    unspoken = {Thing.ACTIVITY} if process.holder is Holder.MASTER else set()
    mapped = [(thing, access) for thing, access, _ in process.mapped if thing not in unspoken]
    return _against(DESCRIPTORS, process, things, "descriptor") + _against(MAPPINGS, process, mapped, "mapping")


def _below(processes: Mapping[int, Process], ancestor: int, pid: int) -> bool:
    """Say whether a process descends from another, or is that one."""
    while pid in processes:
        if pid == ancestor:
            return True
        pid = processes[pid].parent
    return False


def _taken(processes: Mapping[int, Process], master: int) -> Iterator[Breach]:
    """Yield what is the master's own, or mapped for writing, where it may not be: whoever it is, and whoever started it."""
    owned = {held.identity: held.thing for held in processes[master].held if held.thing in MASTERS_OWN}
    for process in processes.values():
        if process.pid == master:
            continue
        allowed = {row.thing for row in DESCRIPTORS if row.holder is process.holder}
        for held in process.held:
            thing = owned.get(held.identity)
            if thing is not None and thing not in allowed:
                yield Breach(process.pid, process.started, f"has {thing} of the master's", f"descriptor {held.fd}")
        for thing, access, _ in process.mapped:
            if "w" in access and thing in MASTERS_OWN:
                yield Breach(process.pid, process.started, f"maps {thing} for writing")


def _shared(processes: Mapping[int, Process], master: int, strict: Container[int]) -> Iterator[Breach]:
    """Yield what is one process's alone and is another's too, but for the master's and for what it has forked."""
    holders: dict[tuple[int, int], set[int]] = {}
    own: dict[int, dict[tuple[int, int], Thing]] = {}
    for process in processes.values():
        things = [(held.thing, held.identity) for held in process.held] + [(thing, identity) for thing, _, identity in process.mapped]
        own[process.pid] = {identity: thing for thing, identity in things if thing in EXCLUSIVE}
        for identity in own[process.pid] if process.pid != master else ():
            holders.setdefault(identity, set()).add(process.pid)
    for process in processes.values():
        if process.pid == master or process.pid not in strict:
            continue
        for identity, thing in own[process.pid].items():
            foreign = sorted(pid for pid in holders[identity] if not _below(processes, process.pid, pid))
            if foreign:
                yield Breach(process.pid, process.started, f"shares {thing} with others", f"processes {foreign[:5]}")


def judge(
    processes: Mapping[int, Process], master: int, *, trusted: Container[int] | None = None, reused: bool = False, opened: bool = False
) -> set[Breach]:
    """Return who breaks the table, and how. `trusted` are the sessions whose handler behaves; None: all do.

    `opened`: the handler's import has opened files of its own, so only what is the master's is looked for in mold, spares and sessions.
    """
    strict = {
        pid
        for pid, process in processes.items()
        if process.holder is not None and (process.holder is not Holder.SESSION or trusted is None or pid in trusted)
    }
    found = {*_taken(processes, master), *(() if opened else _shared(processes, master, strict))}
    for process in (processes[pid] for pid in strict):
        links = str([(held.fd, held.link) for held in process.held])
        if not opened or process.holder in (Holder.MASTER, Holder.EXPORTER):
            found |= {Breach(process.pid, process.started, text, links) for text in _strict(process, reused)}
        found |= {
            Breach(process.pid, process.started, f"it is not so that: {claim.what} ({claim.why})")
            for claim in CLAIMS
            if process.holder in claim.holders
            and not (opened and claim.ready and process.holder is Holder.MOLD)
            and not claim.holds(process, processes[master])
        }
    return found


def broken_rights(
    master: int,
    *,
    metrics: int = 0,
    control: str = "",
    trusted: Container[int] | None = None,
    reused: bool = False,
    opened: bool = False,
    looks: int = 4,
) -> list[str]:
    """Return a sentence for each fact that the table does not allow, the same in so many looks, a moment apart; see `judge`."""
    certain: set[Breach] | None = None
    kinds: dict[int, str] = {}
    for number in range(looks):
        if number:
            # What is under way gets there meanwhile, also on a busy machine; nobody tells when.
            time.sleep(0.05 * 3 ** (number - 1))
        # While the master stands still, nothing gets anywhere.
        eventually(lambda: state(master) != "T", "a master that goes on")
        try:
            processes = look(master, metrics=metrics, control=control)
        except OSError:
            # The master has ended.
            return []
        if master not in processes:
            return []
        found = judge(processes, master, trusted=trusted, reused=reused, opened=opened)
        certain = found if certain is None else {breach for breach in certain if breach in found}
        kinds |= {pid: str(process.holder or "process") for pid, process in processes.items()}
        if not certain:
            return []
    return sorted(f"{kinds[breach.pid]} {breach.pid} {breach.fact} {breach.detail}".rstrip() for breach in certain or ())

"""The shared memories: counters, table, phase and activity pages. Each word has one writer for its whole life.

counters   written by the master alone, read by the exporter and `poold status`
table      one row a child, written by the master alone, read by `poold ps`
phase      one page, written by the master, mapped read-only by workers
activity   one page a worker, in a file of its own, written by that worker alone; what the master reads there is gossip

Counters. The master keeps its numbers in private memory and publishes them once a turn of its loop: it writes the block that
is not in use, with a sequence number and a checksum, then stores which block is in use. A reader copies the block in use and
checks it; it never sees two counters of different moments, and it cannot hang when the master is stopped. Stores are slices
of aligned words: `struct.pack_into` writes byte by byte, and a reader saw torn values in every tenth read.

    0     magic, the layout's version in it        4096    names of listeners, 64 of 128 bytes, zero-padded
    8     number of cells                        12288   block 0: sequence, checksum, cells
    16    block in use                           then    block 1

Every cell is an unsigned 64-bit integer; times are in microseconds. Wire format: little-endian on every machine poold runs on,
because writer and readers share the machine.
"""

import array
import fcntl
import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from zlib import crc32

from poold.pages import map_memory
from poold.words import ACCEPT_ERRNOS, FORK_ERRNOS, Cause, Failure, Kind, Refusal, ReloadResult, State, UpgradeResult

MAGIC = b"poold\0\0\1"
LISTENERS_MAX = 64
NAME_BYTES = 128
NAMES_AT = 4096
BLOCKS_AT = NAMES_AT + LISTENERS_MAX * NAME_BYTES
BLOCK_HEAD = 16

# Slots below this are for children that are not workers, so that a flood of workers cannot take them.
AUXILIARY_SLOTS = 16
WORKERS_MAX = 65_536
SLOTS = AUXILIARY_SLOTS + WORKERS_MAX

F_SEAL_FUTURE_WRITE = 0x10  # fcntl(2), Linux 5.1; not in the module fcntl

# Upper bounds of histograms, in the unit of the metric (seconds or bytes).
SESSION_BUCKETS = (0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0, 86400.0)
CPU_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0)
MEMORY_BUCKETS = tuple(float(mib << 20) for mib in (8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 4096))
HANDOVER_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LOOP_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)


class _Cells:
    """Deals out cell numbers."""

    def __init__(self) -> None:
        self.count = 0

    def one(self) -> int:
        self.count += 1
        return self.count - 1

    def many(self, count: int) -> range:
        self.count += count
        return range(self.count - count, self.count)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Where a histogram's cells are: one a bucket and one above them all, then the sum in micro-units."""

    buckets: tuple[float, ...]
    first: int
    total: int


def _histogram(cells: _Cells, buckets: tuple[float, ...]) -> Histogram:
    counts = cells.many(len(buckets) + 1)
    return Histogram(buckets, counts.start, cells.one())


_cells = _Cells()
LISTENERS = _cells.one()  # how many names are in use
ACCEPTED = _cells.many(LISTENERS_MAX)
BACKLOG = _cells.many(LISTENERS_MAX)
BACKLOG_LIMIT = _cells.many(LISTENERS_MAX)
BACKLOG_KNOWN = _cells.many(LISTENERS_MAX)  # 1 while the listener is open and the kernel tells
REFUSED = dict(zip(Refusal, _cells.many(len(Refusal)), strict=True))
ENDED = dict(zip(Cause, _cells.many(len(Cause)), strict=True))
SESSIONS_ACTIVE = _cells.one()
CHILDREN_ACTIVE = _cells.one()
CHILDREN = {(kind, state): _cells.one() for kind in Kind for state in State}
CHILDREN_MAX = _cells.one()
SPAWNED = dict(zip(Kind, _cells.many(len(Kind)), strict=True))
REAPED = dict(zip(Kind, _cells.many(len(Kind)), strict=True))
FAILED = dict(zip(Failure, _cells.many(len(Failure)), strict=True))
UNKNOWN_REAPED = _cells.one()
FORK_FAILURES = dict(zip(FORK_ERRNOS, _cells.many(len(FORK_ERRNOS)), strict=True))
ACCEPT_ERRORS = dict(zip(ACCEPT_ERRNOS, _cells.many(len(ACCEPT_ERRNOS)), strict=True))
ACCEPTING = _cells.one()
NOT_ACCEPTING_SINCE = _cells.one()  # CLOCK_MONOTONIC, 0 while accepting
BARREN_FROM = _cells.one()  # no worker can be born from then on (CLOCK_MONOTONIC; ahead while one may yet), 0 while one can
RELOAD_SUCCESSFUL = _cells.one()
RELOAD_SUCCESS_AT = _cells.one()  # since the epoch
RELOADS = dict(zip(ReloadResult, _cells.many(len(ReloadResult)), strict=True))
UPGRADES = dict(zip(UpgradeResult, _cells.many(len(UpgradeResult)), strict=True))
GENERATION = _cells.one()
DRAINING = _cells.one()
LOG_DROPPED = _cells.one()
LOOP_ERRORS = _cells.one()
MOLD_STARTS = _cells.one()
PROCESS_CPU = _cells.one()
PROCESS_STARTED = _cells.one()  # since the epoch
PROCESS_VIRTUAL = _cells.one()
PROCESS_RESIDENT = _cells.one()
PROCESS_FDS = _cells.one()
PROCESS_FDS_MAX = _cells.one()
SESSION_SECONDS = _histogram(_cells, SESSION_BUCKETS)
CPU_SECONDS = _histogram(_cells, CPU_BUCKETS)
MEMORY_BYTES = _histogram(_cells, MEMORY_BUCKETS)
HANDOVER_SECONDS = _histogram(_cells, HANDOVER_BUCKETS)
LOOP_SECONDS = _histogram(_cells, LOOP_BUCKETS)
CELLS = _cells.count

BLOCK_SIZE = BLOCK_HEAD + CELLS * 8
COUNTERS_SIZE = BLOCKS_AT + 2 * BLOCK_SIZE

# pid, kind, state, listener, slot's incarnation, generation, session id, born at, session began at (CLOCK_MONOTONIC), peer
ROW = struct.Struct("<IBBHIIQdd56s")
ROW_SIZE = 128
ROW_CHECK = struct.Struct("<I")
# How many rows a reader needs to look at: the highest slot ever used, and one.
TABLE_HEAD = ROW_SIZE
TABLE_SIZE = TABLE_HEAD + SLOTS * ROW_SIZE

PAGE = mmap.PAGESIZE


def shared_memory(name: str, size: int) -> int:
    """Return a descriptor of a new memory file of this size that only its owner may open again."""
    fd = os.memfd_create(f"poold-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seal(fd: int) -> None:
    """Let no mapping made from now on write, and nobody resize: a read-only descriptor can be reopened for writing through /proc."""
    keep_size(fd, F_SEAL_FUTURE_WRITE)


def keep_size(fd: int, more: int = 0) -> None:
    """Let nobody resize, or add a seal: who maps it would die of touching a page that has gone (mmap(2), SIGBUS)."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | more)


def read_only(fd: int) -> int:
    """Return a new descriptor of the same memory that cannot write."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


class Counters:
    """The master's numbers: private until `publish`."""

    def __init__(self) -> None:
        self.fd = shared_memory("counters", COUNTERS_SIZE)
        self._map = mmap.mmap(self.fd, COUNTERS_SIZE)
        seal(self.fd)
        # Which listener has which label.
        self.names: dict[str, int] = {}
        self.cells = array.array("Q", bytes(8 * CELLS))
        self._bytes = memoryview(self.cells).cast("B")
        self._sequence = 0
        self._map[0:8] = MAGIC
        self._map[8:16] = CELLS.to_bytes(8, "little")
        self.publish()

    def listener(self, name: str) -> int:
        """Return the number of the listener of this name, a new one for a new name. Raises LookupError when 64 are in use."""
        number = self.names.get(name)
        if number is None:
            number = len(self.names)
            if number == LISTENERS_MAX:
                raise LookupError(f"{LISTENERS_MAX} listener names have been used since poold was started; reuse one of them")
            at = NAMES_AT + number * NAME_BYTES
            self._map[at : at + NAME_BYTES] = name.encode().ljust(NAME_BYTES, b"\0")
            self.names[name] = number
            self.cells[LISTENERS] = number + 1
        return number

    def reserve(self, names: Iterable[str]) -> None:
        """Make sure that listeners of these names would get their numbers. Raises LookupError."""
        if len(set(names) | set(self.names)) > LISTENERS_MAX:
            raise LookupError(f"at most {LISTENERS_MAX} listener names can be used in one life of poold; reuse old ones or restart")

    def observe(self, histogram: Histogram, value: float) -> None:
        """Count one value, in the unit of the histogram's buckets."""
        self.cells[histogram.first + bisect_left(histogram.buckets, value)] += 1
        if value > 0:
            self.cells[histogram.total] += int(value * 1_000_000)

    def publish(self) -> None:
        """Make every cell visible to readers, all of one moment."""
        self._sequence += 1
        head = self._sequence.to_bytes(8, "little")
        check = crc32(self._bytes, crc32(head)).to_bytes(8, "little")
        used = self._sequence & 1
        at = BLOCKS_AT + used * BLOCK_SIZE
        self._map[at : at + BLOCK_HEAD] = head + check
        self._map[at + BLOCK_HEAD : at + BLOCK_SIZE] = self._bytes
        self._map[16:24] = used.to_bytes(8, "little")

    def close(self) -> None:
        """Give the memory back."""
        self._bytes.release()
        self._map.close()
        os.close(self.fd)


class CountersView:
    """A reader of another process's counters; owns no descriptor after it was made, and its mapping for the process's life."""

    def __init__(self, fd: int) -> None:
        """Raise ValueError where another version of poold has written them, OSError."""
        size = os.fstat(fd).st_size
        self._map = map_memory(fd, size=min(size, COUNTERS_SIZE))
        if size != COUNTERS_SIZE or self._map[0:8] != MAGIC or int.from_bytes(self._map[8:16], "little") != CELLS:
            raise ValueError("the counters have another layout; they belong to another version of poold")
        self._last = array.array("Q", bytes(8 * CELLS))

    def read(self) -> Sequence[int]:
        """Return every cell as of one moment; the last good copy where the writer was faster each time."""
        for _ in range(100):
            at = BLOCKS_AT + (self._map[16] & 1) * BLOCK_SIZE
            block = bytes(self._map[at : at + BLOCK_SIZE])
            check = int.from_bytes(block[8:16], "little")
            if crc32(memoryview(block)[BLOCK_HEAD:], crc32(block[0:8])) == check:
                self._last = array.array("Q", block[BLOCK_HEAD:])
                break
        return self._last

    def names(self, cells: Sequence[int]) -> list[str]:
        """Return the names of the listeners in use, in the order of their numbers."""
        return [
            bytes(self._map[at : at + NAME_BYTES]).rstrip(b"\0").decode()
            for at in range(NAMES_AT, NAMES_AT + cells[LISTENERS] * NAME_BYTES, NAME_BYTES)
        ]


@dataclass(frozen=True, slots=True)
class Row:
    """One child as `poold ps` sees it; times by CLOCK_MONOTONIC, 0 for none."""

    slot: int
    pid: int
    kind: Kind
    state: State
    listener: int
    incarnation: int
    generation: int
    session: int
    born_at: float
    session_at: float
    peer: str


KINDS = tuple(Kind)
STATES = tuple(State)
KIND_NUMBER = {kind: number for number, kind in enumerate(KINDS)}
STATE_NUMBER = {state: number for number, state in enumerate(STATES)}
NO_LISTENER = 0xFFFF


class Table:
    """The master's rows, written whenever a child changes."""

    def __init__(self) -> None:
        self.fd = shared_memory("table", TABLE_SIZE)
        self._map = mmap.mmap(self.fd, TABLE_SIZE)
        seal(self.fd)
        self._used = 0

    def write(
        self,
        slot: int,
        *,
        pid: int,
        kind: Kind,
        state: State,
        listener: int,
        incarnation: int,
        generation: int,
        session: int,
        born_at: float,
        session_at: float,
        peer: str,
    ) -> None:
        """Show a child as `Row` describes it."""
        name = peer.encode("utf-8", "replace")[:56]
        packed = ROW.pack(
            pid, KIND_NUMBER[kind], STATE_NUMBER[state], listener, incarnation, generation, session, born_at, session_at, name
        )
        at = TABLE_HEAD + slot * ROW_SIZE
        self._map[at : at + ROW.size + 4] = packed + ROW_CHECK.pack(crc32(packed))
        if slot >= self._used:
            self._used = slot + 1
            self._map[0:8] = self._used.to_bytes(8, "little")

    def clear(self, slot: int) -> None:
        """Take a row away."""
        at = TABLE_HEAD + slot * ROW_SIZE
        self._map[at : at + 4] = bytes(4)

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()
        os.close(self.fd)


class TableView:
    """A reader of another process's table; owns no descriptor after it was made."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, TABLE_SIZE, access=mmap.ACCESS_READ)

    def rows(self) -> list[Row]:
        """Return a row for each child; one that is being written at this moment is read again, then left out."""
        used = int.from_bytes(self._map[0:8], "little")
        rows = (self._row(slot) for slot in range(min(used, SLOTS)))
        return [row for row in rows if row is not None]

    def _row(self, slot: int) -> Row | None:
        at = TABLE_HEAD + slot * ROW_SIZE
        if self._map[at : at + 4] == b"\0\0\0\0":
            return None
        for _ in range(10):
            packed = self._map[at : at + ROW.size + 4]
            if crc32(packed[: ROW.size]) == ROW_CHECK.unpack_from(packed, ROW.size)[0]:
                pid, kind, state, listener, incarnation, generation, session, born_at, session_at, peer = ROW.unpack_from(packed)
                text = peer.rstrip(b"\0").decode("utf-8", "replace")
                return Row(slot, pid, KINDS[kind], STATES[state], listener, incarnation, generation, session, born_at, session_at, text)
        return None

"""The shared counters: the table of poold's metrics, and the memory that shows their figures.

The master alone writes the counters. The exporter and `poold status` read them, each through a
descriptor that cannot write.

A metric is one row below: name, type, help, labels. The row deals out the cells. The constant on
its left is where the code that counts finds the cells. To add a metric, add a row and the line of
code that counts. `poold.metrictable` says what follows from a row.

The master keeps its numbers in private memory and publishes them once a turn of its loop. The
master writes the block that is not in use, with a sequence number and a checksum. Then the master
stores which block is in use. A reader copies the block in use and compares the checksum. So all
figures of a reading are of one moment, and no reader waits for a master that is stopped. Stores are
slices of aligned words, because `struct.pack_into` writes byte by byte, and a reader could see half
of a word.

    0     magic                                    4096    names of listeners, 64 of 128 bytes
    8     checksum of the layout of the cells      12288   block 0: sequence, checksum, cells
    16    number of the block in use               then    block 1

Every cell is an unsigned 64-bit integer. Times in cells are in microseconds. Names are padded with
zeros. Words are little-endian on every machine, because writer and readers share the machine.
"""

import array
import fcntl
import mmap
import os
import sys
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from zlib import crc32

from poold import __version__
from poold.metrictable import CellUnit, FactLabels, Histogram, ListenerLabel, MetricTable, NoLabel, WordLabel, WordLabels
from poold.pages import map_memory
from poold.words import ACCEPT_ERRNOS, FORK_ERRNOS, LISTENERS_MAX, Cause, Failure, Kind, Refusal, ReloadResult, State, UpgradeResult

MAGIC = b"poold\0\0\1"
NAME_BYTES = 128
NAMES_AT = 4096
BLOCKS_AT = NAMES_AT + LISTENERS_MAX * NAME_BYTES
BLOCK_HEAD = 16

F_SEAL_FUTURE_WRITE = 0x10  # fcntl(2), Linux 5.1; the module fcntl lacks the name

# Upper bounds of histograms, in the unit of the metric (seconds or bytes).
SESSION_BUCKETS = (0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0, 86400.0)
CPU_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0)
MEMORY_BUCKETS = tuple(float(mib << 20) for mib in (8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 4096))
HANDOVER_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LOOP_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)

_NO_LABEL, _LISTENER = NoLabel(), ListenerLabel(LISTENERS_MAX)
_MICROSECOND, _FLAG = CellUnit.MICROSECOND, CellUnit.FLAG
# What `platform.python_version` returns, without the weight of that module in the master.
_PYTHON = sys.version.split()[0]
_table = MetricTable()
_counter, _gauge, _histogram = _table.counter, _table.gauge, _table.histogram

# Cells that no metric shows. Moments are CLOCK_MONOTONIC.
# How many listeners' names are in use.
[LISTENERS] = _table.cells(1)
# 1 while the listener is open and the kernel tells its queue.
BACKLOG_KNOWN = _table.cells(LISTENERS_MAX)
_OPEN_LISTENER = ListenerLabel(LISTENERS_MAX, BACKLOG_KNOWN)
# 0 while the master accepts.
[NOT_ACCEPTING_SINCE] = _table.cells(1)
# The moment from which on no worker can be born; a later one is a deadline; 0 while workers are
# born.
[BARREN_FROM] = _table.cells(1)

# Children.
CHILDREN_ACTIVE = _gauge("poold_children_active", "Workers that serve an acknowledged session.", _NO_LABEL, status="sessions.serving")
CHILDREN = _gauge("poold_children", "Living children by kind and state.", WordLabels("kind", Kind, "state", State))
CHILDREN_MAX = _gauge("poold_children_max", "The cap: how many workers may live, spares included.", _NO_LABEL, status="children_max")
SPAWNED = _counter(
    "poold_children_spawned_total", "Children that came to life.", WordLabel("kind", Kind), carried="spawned", status="spawned"
)
REAPED = _counter(
    "poold_children_reaped_total", "Children whose exit was collected.", WordLabel("kind", Kind), carried="reaped", line="reaped"
)
FAILED = _counter(
    "poold_children_failed_total",
    "Reaped children that failed, of all kinds.",
    WordLabel("reason", Failure),
    carried="failed",
    line="failed",
)
UNKNOWN_REAPED = _counter(
    "poold_unknown_children_reaped_total", "Exits of processes that are not the pool's.", _NO_LABEL, carried="unknown_reaped"
)
CPU_SECONDS = _histogram("poold_child_cpu_seconds", "CPU time of a child, user and system.", CPU_BUCKETS, carried="cpu_seconds")
MEMORY_BYTES = _histogram(
    "poold_child_memory_peak_bytes",
    "Peak resident memory of a child; a worker's begins at the mold's size at its clone, so that is the floor.",
    MEMORY_BUCKETS,
    carried="memory_bytes",
)
FORK_FAILURES = _counter("poold_fork_failures_total", "Clones that failed.", WordLabel("errno", FORK_ERRNOS), carried="fork_failures")
MOLD_STARTS = _counter("poold_mold_starts_total", "Molds that were started.", _NO_LABEL, carried="mold_starts")

# Connections and sessions.
ACCEPTED = _counter(
    "poold_connections_accepted_total", "Connections that accept() returned.", _LISTENER, carried="accepted", status="accepted"
)
REFUSED = _counter(
    "poold_connections_refused_total",
    "Accepted connections that did not become sessions.",
    WordLabel("reason", Refusal),
    carried="refused",
    line="refused",
)
SESSIONS_ACTIVE = _gauge(
    "poold_sessions_active", "Sessions that have not ended, those that wait for their worker included.", _NO_LABEL, status="sessions.active"
)
ENDED = _counter(
    "poold_sessions_ended_total", "Sessions that ended, each with its one cause.", WordLabel("cause", Cause), carried="ended", line="ended"
)
SESSION_SECONDS = _histogram(
    "poold_session_duration_seconds", "Time from accept to a session's end.", SESSION_BUCKETS, carried="session_seconds"
)
HANDOVER_SECONDS = _histogram(
    "poold_handover_seconds",
    "Time from accept to the worker's acknowledgement of the connection.",
    HANDOVER_BUCKETS,
    carried="handover_seconds",
)
ACCEPT_ERRORS = _counter("poold_accept_errors_total", "Errors of accept().", WordLabel("errno", ACCEPT_ERRNOS), carried="accept_errors")
ACCEPTING = _gauge("poold_accepting", "1 while the listeners are watched.", _NO_LABEL, unit=_FLAG, status="accepting")
BACKLOG = _gauge("poold_backlog", "Connections that wait in the kernel for accept.", _OPEN_LISTENER)
BACKLOG_LIMIT = _gauge("poold_backlog_limit", "Connections that may wait in the kernel.", _OPEN_LISTENER)

# Operations.
RELOAD_SUCCESSFUL = _gauge(
    "poold_config_last_reload_successful",
    "1 when the last reload, or the start, was applied.",
    _NO_LABEL,
    unit=_FLAG,
    carried="reload_successful",
    status="last_reload.successful",
)
RELOAD_SUCCESS_AT = _gauge(
    "poold_config_last_reload_success_timestamp_seconds",
    "When settings were last applied.",
    _NO_LABEL,
    unit=_MICROSECOND,
    carried="reload_success_at",
    status="last_reload.applied_at",
)
RELOADS = _counter("poold_reloads_total", "Reloads by result.", WordLabel("result", ReloadResult), carried="reloads", line="reloads")
UPGRADES = _counter("poold_upgrades_total", "Upgrades by result.", WordLabel("result", UpgradeResult), carried="upgrades")
GENERATION = _gauge("poold_generation", "Counts applied settings and upgrades.", _NO_LABEL, status="generation")
DRAINING = _gauge("poold_draining", "1 while draining.", _NO_LABEL, unit=_FLAG)
BUILD_INFO = _gauge("poold_build_info", "What runs, as labels.", FactLabels({"version": __version__, "python": _PYTHON}))
LOOP_SECONDS = _histogram("poold_master_loop_seconds", "Work in one turn of the master's loop.", LOOP_BUCKETS, carried="loop_seconds")
LOG_DROPPED = _counter("poold_log_dropped_total", "Log lines that their stream did not take.", _NO_LABEL, carried="log_dropped")
LOOP_ERRORS = _counter("poold_loop_errors_total", "Errors that a callback of the master's loop raised.", _NO_LABEL, carried="loop_errors")

# The master's process.
PROCESS_CPU = _counter("process_cpu_seconds_total", "CPU time of the master, user and system.", _NO_LABEL, unit=_MICROSECOND, carried="")
PROCESS_STARTED = _gauge(
    "process_start_time_seconds", "When the master started, since the epoch.", _NO_LABEL, unit=_MICROSECOND, carried="process_started"
)
PROCESS_VIRTUAL = _gauge("process_virtual_memory_bytes", "Virtual memory of the master.", _NO_LABEL)
PROCESS_RESIDENT = _gauge("process_resident_memory_bytes", "Resident memory of the master.", _NO_LABEL)
PROCESS_FDS = _gauge("process_open_fds", "Open descriptors of the master.", _NO_LABEL)
PROCESS_FDS_MAX = _gauge("process_max_fds", "Limit of the master's open descriptors.", _NO_LABEL)

METRICS = tuple(_table.metrics)
CELLS = _table.size
LAYOUT = _table.checksum().to_bytes(8, "little")
BLOCK_SIZE = BLOCK_HEAD + CELLS * 8
COUNTERS_SIZE = BLOCKS_AT + 2 * BLOCK_SIZE


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
    """Forbid later mappings that write, and changes of the size of the file.

    A process with a read-only descriptor could otherwise open the file for writing through /proc.
    """
    keep_size(fd, F_SEAL_FUTURE_WRITE)


def keep_size(fd: int, more: int = 0) -> None:
    """Forbid changes of the size of the file, and every further seal except `more`.

    A process that touches a mapped page behind the file's end dies (mmap(2), SIGBUS).
    """
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | more)


def read_only(fd: int) -> int:
    """Return a new descriptor of the same memory that cannot write. The caller closes it."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


class Counters:
    """The master's numbers: private until `publish`."""

    def __init__(self) -> None:
        self.fd = shared_memory("counters", COUNTERS_SIZE)
        self._map = mmap.mmap(self.fd, COUNTERS_SIZE)
        seal(self.fd)
        # The number of each listener's name.
        self.names: dict[str, int] = {}
        self.cells = array.array("Q", bytes(8 * CELLS))
        self._bytes = memoryview(self.cells).cast("B")
        self._sequence = 0
        self._map[0:8] = MAGIC
        self._map[8:16] = LAYOUT
        self.publish()

    def listener(self, name: str) -> int:
        """Return the number of the listener of this name; a new name gets a new number.

        Raises LookupError when 64 names are in use.
        """
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
        """Make sure that `listener` would have a number for each of these names.

        Raises LookupError.
        """
        if len(set(names) | set(self.names)) > LISTENERS_MAX:
            raise LookupError(f"at most {LISTENERS_MAX} listener names can be used in one life of poold; reuse old ones or restart")

    def observe(self, histogram: Histogram, value: float) -> None:
        """Count one value, in the unit of the histogram's buckets."""
        self.cells[histogram.first + bisect_left(histogram.buckets, value)] += 1
        if value > 0:
            self.cells[histogram.total] += int(value * 1_000_000)

    def publish(self) -> None:
        """Show every cell to the readers, all cells as of one moment."""
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
    """A reader of another process's counters.

    The view needs no descriptor once the view is made. The mapping stays for the process's life.
    """

    def __init__(self, fd: int) -> None:
        """Raise ValueError for counters of another version of poold; raise OSError."""
        size = os.fstat(fd).st_size
        self._map = map_memory(fd, size=min(size, COUNTERS_SIZE))
        if size != COUNTERS_SIZE or self._map[0:8] != MAGIC or self._map[8:16] != LAYOUT:
            raise ValueError("the counters have another layout; they belong to another version of poold")
        self._last = array.array("Q", bytes(8 * CELLS))

    def read(self) -> Sequence[int]:
        """Return every cell as of one moment.

        The cells are those of the last reading where the writer was faster at each try.
        """
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

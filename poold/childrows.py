"""The shared rows of children: one row for each child of the master, read by `poold ps`.

The master alone writes a row, whenever the child changes. A reader maps the rows read-only and
compares each row's checksum. A row that the master is writing does not match, and is read again.

    0     how many slots have ever been in use: readers look at these alone
    128   a row of 128 bytes for each slot: `PACKED_ROW`, then the checksum

The row of a free slot begins with a pid of 0.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from zlib import crc32

from poold.scoreboard import seal, shared_memory
from poold.words import Kind, State

# Workers have no slots below this, so that a flood of workers leaves slots for children of other
# kinds.
AUXILIARY_SLOTS = 16
WORKERS_MAX = 65_536
SLOTS = AUXILIARY_SLOTS + WORKERS_MAX

# pid, kind, state, listener, the slot's incarnation, generation, session id, the moments of the
# birth and of the session's beginning (CLOCK_MONOTONIC), peer
PACKED_ROW = struct.Struct("<IBBHIIQdd56s")
ROW_CHECK = struct.Struct("<I")
ROW_SIZE = 128
ROWS_AT = ROW_SIZE
ROWS_SIZE = ROWS_AT + SLOTS * ROW_SIZE
PEER_BYTES = 56

# A row holds numbers in the place of words: the position of the word in `poold.words`.
KINDS = tuple(Kind)
STATES = tuple(State)
KIND_NUMBER = {kind: number for number, kind in enumerate(KINDS)}
STATE_NUMBER = {state: number for number, state in enumerate(STATES)}
NO_LISTENER = 0xFFFF


@dataclass(frozen=True, slots=True)
class ChildRow:
    """One child as `poold ps` shows the child. Moments are CLOCK_MONOTONIC, 0 for none."""

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


class ChildRows:
    """The master's rows, written whenever a child changes."""

    def __init__(self) -> None:
        self.fd = shared_memory("table", ROWS_SIZE)
        self._map = mmap.mmap(self.fd, ROWS_SIZE)
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
        """Write the row of a child; `ChildRow` says what the fields are."""
        name = peer.encode("utf-8", "replace")[:PEER_BYTES]
        packed = PACKED_ROW.pack(
            pid, KIND_NUMBER[kind], STATE_NUMBER[state], listener, incarnation, generation, session, born_at, session_at, name
        )
        at = ROWS_AT + slot * ROW_SIZE
        self._map[at : at + PACKED_ROW.size + 4] = packed + ROW_CHECK.pack(crc32(packed))
        if slot >= self._used:
            self._used = slot + 1
            self._map[0:8] = self._used.to_bytes(8, "little")

    def clear(self, slot: int) -> None:
        """Take a row away."""
        at = ROWS_AT + slot * ROW_SIZE
        self._map[at : at + 4] = bytes(4)

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()
        os.close(self.fd)


class ChildRowsView:
    """A reader of another process's rows. The view keeps a descriptor of its own."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, ROWS_SIZE, access=mmap.ACCESS_READ)

    def rows(self) -> list[ChildRow]:
        """Return a row for each child. A row that never matches its checksum is left out."""
        used = int.from_bytes(self._map[0:8], "little")
        rows = (self._row(slot) for slot in range(min(used, SLOTS)))
        return [row for row in rows if row is not None]

    def _row(self, slot: int) -> ChildRow | None:
        at = ROWS_AT + slot * ROW_SIZE
        if self._map[at : at + 4] == b"\0\0\0\0":
            return None
        for _ in range(10):
            packed = self._map[at : at + PACKED_ROW.size + 4]
            if crc32(packed[: PACKED_ROW.size]) == ROW_CHECK.unpack_from(packed, PACKED_ROW.size)[0]:
                pid, kind, state, listener, incarnation, generation, session, born_at, session_at, peer = PACKED_ROW.unpack_from(packed)
                text = peer.rstrip(b"\0").decode("utf-8", "replace")
                return ChildRow(
                    slot, pid, KINDS[kind], STATES[state], listener, incarnation, generation, session, born_at, session_at, text
                )
        return None

"""A session's place in the chat, and the records that sessions send to each other.

A record is one line: a scope, a TAB, the text in UTF-8, a newline. The scope is the file name of a
room, "@" or "!". The name of a room addresses each session in that room, "@" only the reader. After
"!" the text is the number of records for the reader that were lost. A record has at most PIPE_BUF
bytes, so that one write puts the record into a FIFO whole or not at all. Other bytes may come
before a record, because the FIFO is also its owner's wakeup descriptor for signals.

Sending never waits. If the FIFO of a busy session is full, the sender holds the records within
bounds and writes them later.
"""

import errno
import os
from collections import deque
from enum import Enum, auto
from select import PIPE_BUF

from poold.handlers.chat.hall import Hall, hall_name, make_folder, private_folder, remove_deserted
from poold.handlers.chat.text import FILE_NAME_MAX, decode, encode, encode_within, name_key

PRIVATE_SCOPE = "@"
LOST_SCOPE = "!"
TEXT_MAX = PIPE_BUF - FILE_NAME_MAX - 2
NOT_TEXT = bytes(byte for byte in range(32) if byte != ord("\t"))
READ_SIZE = 65536
# The most sessions for which a sender holds records, and the most bytes for each. Beyond these
# bounds lines are lost.
HELD_SESSIONS = 64
HELD_BYTES = 32768
ENTRY_ATTEMPTS = 100


def pack_record(scope: str, text: str) -> bytes:
    """Return a record. Too long a text is cut."""
    return scope.encode() + b"\t" + encode_within(text, TEXT_MAX) + b"\n"


class Delivery(Enum):
    """The result of sending a record."""

    TAKEN = auto()
    ABSENT = auto()
    DEAD = auto()


class HeldRecords:
    """The records that are held for a session whose FIFO was full, and the open FIFO."""

    __slots__ = ("_lost", "_records", "_size", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._records: deque[bytes] = deque()
        self._size = 0
        self._lost = 0

    def add(self, item: bytes) -> None:
        """Hold one more record, and drop the oldest records beyond `HELD_BYTES`."""
        self._records.append(item)
        self._size += len(item)
        while self._size > HELD_BYTES:
            self._size -= len(self._records.popleft())
            self._lost += 1

    def flush(self) -> bool:
        """Write the records that the FIFO takes now. Return whether none is left."""
        try:
            if self._lost:
                os.write(self.fd, pack_record(LOST_SCOPE, str(self._lost)))
                self._lost = 0
            while self._records:
                os.write(self.fd, self._records[0])
                self._size -= len(self._records.popleft())
        except BlockingIOError:
            return False
        except BrokenPipeError:
            # The owner has died. The next session that opens this FIFO removes it.
            return True
        return True


class Post:
    """Sends records to the FIFOs of other sessions."""

    __slots__ = ("_hall", "_held")

    def __init__(self, hall: Hall) -> None:
        self._hall = hall
        self._held: dict[str, HeldRecords] = {}

    def send(self, path: str, item: bytes) -> Delivery:
        """Write the record to a FIFO, or hold the record where the FIFO is full."""
        held = self._held.get(path)
        if held is not None:
            held.add(item)
            return Delivery.TAKEN
        try:
            fd = self._hall.open_writer(path)
        except OSError as error:
            return self._failed_delivery(error)
        try:
            os.write(fd, item)
        except BlockingIOError:
            if len(self._held) < HELD_SESSIONS:
                self._held[path] = held = HeldRecords(fd)
                held.add(item)
                return Delivery.TAKEN
        except BrokenPipeError:
            os.close(fd)
            return Delivery.DEAD
        os.close(fd)
        return Delivery.TAKEN

    @staticmethod
    def _failed_delivery(error: OSError) -> Delivery:
        if error.errno == errno.ENOENT:
            return Delivery.ABSENT
        if error.errno == errno.ENXIO:
            return Delivery.DEAD
        if error.errno in (errno.EMFILE, errno.ENFILE):
            # This process has no free descriptor. The line is lost, as for a session that reads too
            # slowly.
            return Delivery.TAKEN
        raise error

    def waiting(self) -> list[int]:
        """Return the descriptors of full FIFOs, to be polled for writing."""
        return [held.fd for held in self._held.values()]

    def flush(self, fd: int) -> None:
        """Write the records that are held for this descriptor, as far as the FIFO takes them."""
        for path, held in list(self._held.items()):
            if held.fd == fd and held.flush():
                del self._held[path]
                os.close(fd)

    def close(self) -> None:
        """Drop the held records."""
        for held in self._held.values():
            os.close(held.fd)
        self._held.clear()


class Seat:
    """A session's place in the chat: FIFO, name and room. Ended by `leave`, then `close`."""

    __slots__ = ("_base", "_hall", "_partial", "departed", "fifo", "name", "post", "room")

    def __init__(self, base: str, hall: Hall, fifo: int, name: str, room: str) -> None:
        self._base = base
        self._hall = hall
        self._partial = b""
        self.departed: list[str] = []
        self.fifo = fifo
        self.name = name
        self.room = room
        self.post = Post(hall)

    def rename(self, name: str) -> bool:
        """Take another name. Return False if another session has the name."""
        before, after = {_name_path(self.name), _member_path(self.room, self.name)}, {_name_path(name), _member_path(self.room, name)}
        with self._hall as hall:
            if not hall.link(_name_path(self.name), _name_path(name)):
                return False
            hall.link(_name_path(name), _member_path(self.room, name))
            for path in before - after:
                hall.unlink(path)
        self.name = name
        return True

    def move(self, room: str) -> None:
        """Go to another room. A missing room is made, and the old room is removed if empty."""
        with self._hall as hall:
            hall.make_folders(encode(room))
            hall.link(_name_path(self.name), _member_path(room, self.name))
            hall.unlink(_member_path(self.room, self.name))
            hall.remove_folder(_room_path(self.room))
        self.room = room

    def members(self, room: str) -> list[str]:
        """Return the names in a room, sorted."""
        folder = _room_path(room)
        found = self._hall.entries(folder)
        dead = {entry for entry in found if self._hall.is_dead(f"{folder}/{entry}")}
        self._remove_dead(room, dead)
        return sorted(decode(entry) for entry in found if entry not in dead)

    def rooms(self) -> list[tuple[str, int]]:
        """Return the rooms and the number of members in each, sorted."""
        counted = [(room, len(self.members(room))) for room in map(decode, self._hall.entries("rooms"))]
        return sorted((room, members) for room, members in counted if members)

    def broadcast(self, text: str) -> None:
        """Send a line to each other session in the room."""
        folder, own, item = _room_path(self.room), encode(self.name), pack_record(encode(self.room), text)
        others = [entry for entry in self._hall.entries(folder) if entry != own]
        self._remove_dead(self.room, {entry for entry in others if self.post.send(f"{folder}/{entry}", item) is Delivery.DEAD})

    def whisper(self, name: str, text: str) -> bool:
        """Send a line to one member in any room. Return False if no member has this name."""
        return self.post.send(_name_path(name), pack_record(PRIVATE_SCOPE, text)) is Delivery.TAKEN

    def _remove_dead(self, room: str, dead: set[str]) -> None:
        """Remove the entries of dead members in a room.

        Entries of the session's own room go to `departed`, unless another session has removed them.
        """
        if not dead or not self._hall.try_lock():
            # A wait for the lock would delay the line that is being sent. A later call removes the
            # dead.
            return
        try:
            for entry in dead:
                self._hall.clear(_name_path(decode(entry)))
                if self._hall.clear(f"{_room_path(room)}/{entry}") and room == self.room:
                    self.departed.append(decode(entry))
        finally:
            self._hall.unlock()

    def receive(self) -> tuple[list[bytes], int]:
        """Return the lines that have come, each with its newline, and the number of lost lines."""
        try:
            *whole, partial = (self._partial + os.read(self.fifo, READ_SIZE)).split(b"\n")
        except BlockingIOError:
            return [], 0
        self._partial = partial[:PIPE_BUF]
        here, lines, lost = encode(self.room).encode(), [], 0
        for item in whole:
            scope, _, text = item.lstrip(NOT_TEXT).partition(b"\t")
            if scope in (here, PRIVATE_SCOPE.encode()):
                lines.append(text + b"\n")
            elif scope == LOST_SCOPE.encode() and text.isdigit():
                lost += int(text)
        return lines, lost

    def refresh(self) -> None:
        """Set the FIFO's times to now: many systems remove old files from temporary folders."""
        self._hall.touch(_name_path(self.name))

    def leave(self) -> None:
        """Give up name and room, and remove what no session needs any more. The FIFO stays open."""
        self._hall.unlink(_member_path(self.room, self.name))
        self._hall.unlink(_name_path(self.name))
        try:
            with self._hall as hall:
                hall.remove_folder(_room_path(self.room))
                hall.remove()
        except TimeoutError:
            # The next session that leaves removes the rest.
            return
        self._hall.remove_base(self._base)

    def close(self) -> None:
        """Close every descriptor."""
        self.post.close()
        os.close(self.fifo)
        self._hall.close()


def take_seat(parent: str | None, name: str, room: str) -> Seat:
    """Enter the chat of this worker's daemon. A number is added to a name that is taken.

    Raises PermissionError if the folder under `parent` is not private, and OSError.
    """
    own = hall_name(os.getppid())
    for attempt in range(ENTRY_ATTEMPTS):
        try:
            seat = _enter(parent, own, name, room)
        except FileNotFoundError:
            # The last session to leave has just removed a folder, or the parent is missing. In the
            # second case each attempt fails.
            if attempt + 1 == ENTRY_ATTEMPTS:
                raise
            continue
        if seat is not None:
            return seat
    raise TimeoutError(f"{own} was removed {ENTRY_ATTEMPTS} times in the moment it was entered")


def _enter(parent: str | None, own: str, name: str, room: str) -> Seat | None:
    """Enter the hall with this name. Return None if another session has removed the hall."""
    path, base = private_folder(parent)
    try:
        make_folder(own, base)
        hall = Hall(own, base)
        try:
            seat = _claim_seat(path, hall, name, room)
        except BaseException:
            hall.close()
            raise
        if seat is None:
            hall.close()
        else:
            remove_deserted(base, own)
        return seat
    finally:
        os.close(base)


def _claim_seat(base: str, hall: Hall, name: str, room: str) -> Seat | None:
    """Take the first free name. Return None if another session has removed the hall."""
    with hall:
        if not hall.has_its_name():
            return None
        hall.make_folders(encode(room))
        free, number = name, 1
        while (fifo := hall.make_fifo(_name_path(free))) is None:
            number += 1
            free = f"{name}-{number}"
        try:
            hall.link(_name_path(free), _member_path(room, free))
        except BaseException:
            hall.unlink(_name_path(free))
            os.close(fifo)
            raise
    return Seat(base, hall, fifo, free, room)


def _name_path(name: str) -> str:
    return f"names/{name_key(name)}"


def _room_path(room: str) -> str:
    return f"rooms/{encode(room)}"


def _member_path(room: str, name: str) -> str:
    return f"{_room_path(room)}/{encode(name)}"

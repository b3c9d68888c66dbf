"""A session's place in the chat, and the lines that go from there to others.

A record is one line: a scope, a TAB, the text in UTF-8, a newline. The scope is a room's file name (the text is for whoever is
in that room), "@" (for the reader alone) or "!" (the text is a number: so many records for the reader were lost). A record
has at most PIPE_BUF bytes, so that one write puts it into a FIFO whole or not at all. Bytes that are not text may precede a
record: a FIFO is its owner's wakeup descriptor for signals, too.

Sending must never wait. What the FIFO of a busy session does not take is held here, within bounds, until it does.
"""

import errno
import os
from collections import deque
from enum import Enum, auto
from select import PIPE_BUF

from poold.handlers.chat.hall import Hall, hall_name, make_folder, private_folder, remove_deserted
from poold.handlers.chat.text import FILE_NAME_MAX, decode, encode, fit, key

PRIVATE = "@"
LOST = "!"
TEXT_MAX = PIPE_BUF - FILE_NAME_MAX - 2
NOT_TEXT = bytes(byte for byte in range(32) if byte != ord("\t"))
READ = 65536
# Together at most 2 MiB: for busy sessions, of which there are few at a time. Beyond that lines are lost.
HELD_SESSIONS = 64
HELD_BYTES = 32768
ENTRY_ATTEMPTS = 100


def record(scope: str, text: str) -> bytes:
    """Return a record; a text that is too long for one is cut."""
    return scope.encode() + b"\t" + fit(text, TEXT_MAX) + b"\n"


class Sent(Enum):
    """What became of a record."""

    TAKEN = auto()
    ABSENT = auto()
    DEAD = auto()


class Held:
    """Records for a session whose FIFO was full, and the FIFO, open."""

    __slots__ = ("_lost", "_records", "_size", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._records: deque[bytes] = deque()
        self._size = 0
        self._lost = 0

    def add(self, item: bytes) -> None:
        """Hold one more record, and drop the oldest where that makes too many."""
        self._records.append(item)
        self._size += len(item)
        while self._size > HELD_BYTES:
            self._size -= len(self._records.popleft())
            self._lost += 1

    def flush(self) -> bool:
        """Write what the FIFO takes; say whether nothing is left to do."""
        try:
            if self._lost:
                os.write(self.fd, record(LOST, str(self._lost)))
                self._lost = 0
            while self._records:
                os.write(self.fd, self._records[0])
                self._size -= len(self._records.popleft())
        except BlockingIOError:
            return False
        except BrokenPipeError:
            # Its owner has died; whoever meets the FIFO next clears it away.
            return True
        return True


class Post:
    """Carries records to the FIFOs of others."""

    __slots__ = ("_hall", "_held")

    def __init__(self, hall: Hall) -> None:
        self._hall = hall
        self._held: dict[str, Held] = {}

    def send(self, path: str, item: bytes) -> Sent:
        """Write the record to a FIFO, or hold it where that is full."""
        held = self._held.get(path)
        if held is not None:
            held.add(item)
            return Sent.TAKEN
        try:
            fd = self._hall.open_writer(path)
        except OSError as error:
            return self._unopened(error)
        try:
            os.write(fd, item)
        except BlockingIOError:
            if len(self._held) < HELD_SESSIONS:
                self._held[path] = held = Held(fd)
                held.add(item)
                return Sent.TAKEN
        except BrokenPipeError:
            os.close(fd)
            return Sent.DEAD
        os.close(fd)
        return Sent.TAKEN

    @staticmethod
    def _unopened(error: OSError) -> Sent:
        if error.errno == errno.ENOENT:
            return Sent.ABSENT
        if error.errno == errno.ENXIO:
            return Sent.DEAD
        if error.errno in (errno.EMFILE, errno.ENFILE):
            # Out of descriptors for the moment: this line is lost, as with a session that reads too slowly.
            return Sent.TAKEN
        raise error

    def waiting(self) -> list[int]:
        """Return the descriptors to poll for writing."""
        return [held.fd for held in self._held.values()]

    def flush(self, fd: int) -> None:
        """Write what is held for one of these descriptors, as far as it is taken now."""
        for path, held in list(self._held.items()):
            if held.fd == fd and held.flush():
                del self._held[path]
                os.close(fd)

    def close(self) -> None:
        """Drop what is held."""
        for held in self._held.values():
            os.close(held.fd)
        self._held.clear()


class Seat:
    """One session's place: its FIFO, its name and its room. Who has it calls `leave`, then `close`."""

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
        """Take another name; False if someone has it."""
        before, after = {_claim(self.name), _place(self.room, self.name)}, {_claim(name), _place(self.room, name)}
        with self._hall as hall:
            if not hall.link(_claim(self.name), _claim(name)):
                return False
            hall.link(_claim(name), _place(self.room, name))
            for path in before - after:
                hall.unlink(path)
        self.name = name
        return True

    def move(self, room: str) -> None:
        """Go to another room, which is made where it is missing; the room that is left is removed if it is empty."""
        with self._hall as hall:
            hall.furnish(encode(room))
            hall.link(_claim(self.name), _place(room, self.name))
            hall.unlink(_place(self.room, self.name))
            hall.remove_folder(_folder(self.room))
        self.room = room

    def members(self, room: str) -> list[str]:
        """Return the names in a room, sorted."""
        folder = _folder(room)
        found = self._hall.entries(folder)
        dead = {entry for entry in found if self._hall.is_dead(f"{folder}/{entry}")}
        self._bury(room, dead)
        return sorted(decode(entry) for entry in found if entry not in dead)

    def rooms(self) -> list[tuple[str, int]]:
        """Return the rooms and how many are in each, sorted."""
        counted = [(room, len(self.members(room))) for room in map(decode, self._hall.entries("rooms"))]
        return sorted((room, members) for room, members in counted if members)

    def broadcast(self, text: str) -> None:
        """Send a line to everybody else in the room."""
        folder, own, item = _folder(self.room), encode(self.name), record(encode(self.room), text)
        others = [entry for entry in self._hall.entries(folder) if entry != own]
        self._bury(self.room, {entry for entry in others if self.post.send(f"{folder}/{entry}", item) is Sent.DEAD})

    def whisper(self, name: str, text: str) -> bool:
        """Send a line to one member, whatever the room; False if nobody has this name."""
        return self.post.send(_claim(name), record(PRIVATE, text)) is Sent.TAKEN

    def _bury(self, room: str, dead: set[str]) -> None:
        """Remove dead members' entries in a room; those of one's own room that nobody else removed first are `departed`."""
        if not dead or not self._hall.try_lock():
            # To wait would be to hold up the line that is being sent; the next one to meet the dead clears them away.
            return
        try:
            for entry in dead:
                self._hall.clear(_claim(decode(entry)))
                if self._hall.clear(f"{_folder(room)}/{entry}") and room == self.room:
                    self.departed.append(decode(entry))
        finally:
            self._hall.unlock()

    def receive(self) -> tuple[list[bytes], int]:
        """Return the lines that have come, each with its newline, and how many were lost."""
        try:
            *whole, partial = (self._partial + os.read(self.fifo, READ)).split(b"\n")
        except BlockingIOError:
            return [], 0
        self._partial = partial[:PIPE_BUF]
        here, lines, lost = encode(self.room).encode(), [], 0
        for item in whole:
            scope, _, text = item.lstrip(NOT_TEXT).partition(b"\t")
            if scope in (here, PRIVATE.encode()):
                lines.append(text + b"\n")
            elif scope == LOST.encode() and text.isdigit():
                lost += int(text)
        return lines, lost

    def refresh(self) -> None:
        """Make the FIFO young again: what looks old in a temporary folder is removed on many systems."""
        self._hall.touch(_claim(self.name))

    def leave(self) -> None:
        """Give up name and room, and tidy up behind oneself. The FIFO stays open."""
        self._hall.unlink(_place(self.room, self.name))
        self._hall.unlink(_claim(self.name))
        try:
            with self._hall as hall:
                hall.remove_folder(_folder(self.room))
                hall.remove()
        except TimeoutError:
            # What is still to be done is done by the next one out.
            return
        self._hall.remove_base(self._base)

    def close(self) -> None:
        """Close every descriptor."""
        self.post.close()
        os.close(self.fifo)
        self._hall.close()


def take_seat(parent: str | None, name: str, room: str) -> Seat:
    """Enter the chat of this worker's daemon; a name that is taken gets a number after it.

    Raises PermissionError if the folder under `parent` is not private, and what the file system has to say.
    """
    own = hall_name(os.getppid())
    for attempt in range(ENTRY_ATTEMPTS):
        try:
            seat = _enter(parent, own, name, room)
        except FileNotFoundError:
            # The last one out has just removed a folder; or there is no parent, and that does not get better.
            if attempt + 1 == ENTRY_ATTEMPTS:
                raise
            continue
        if seat is not None:
            return seat
    raise TimeoutError(f"{own} was removed {ENTRY_ATTEMPTS} times in the moment it was entered")


def _enter(parent: str | None, own: str, name: str, room: str) -> Seat | None:
    """Enter the hall of this name; None if it was removed meanwhile."""
    path, base = private_folder(parent)
    try:
        make_folder(own, base)
        hall = Hall(own, base)
        try:
            seat = _sit(path, hall, name, room)
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


def _sit(base: str, hall: Hall, name: str, room: str) -> Seat | None:
    """Take the first name that is free; None if the hall was removed meanwhile."""
    with hall:
        if not hall.stands():
            return None
        hall.furnish(encode(room))
        free, number = name, 1
        while (fifo := hall.make_fifo(_claim(free))) is None:
            number += 1
            free = f"{name}-{number}"
        try:
            hall.link(_claim(free), _place(room, free))
        except BaseException:
            hall.unlink(_claim(free))
            os.close(fifo)
            raise
    return Seat(base, hall, fifo, free, room)


def _claim(name: str) -> str:
    return f"names/{key(name)}"


def _folder(room: str) -> str:
    return f"rooms/{encode(room)}"


def _place(room: str, name: str) -> str:
    return f"{_folder(room)}/{encode(name)}"

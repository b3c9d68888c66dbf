"""The commands of the chat: what a client's lines mean, and what the client is told.

A `Member` is one client in the chat. A member writes into the backlog and to other sessions, never
to the socket. The chat's own lines begin with "*** ". Lines of members begin with "<", "* " or "[",
so no member can imitate the chat.
"""

from __future__ import annotations

from time import monotonic

from poold.handlers.chat.text import FILE_NAME_MAX, Bucket, clean_line, common_form, name_problem

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from collections.abc import Callable

    from poold.handlers.chat.options import Limits
    from poold.handlers.chat.room import Seat
    from poold.handlers.chat.text import Backlog

# The most names or rooms that one answer lists. A longer answer would outgrow a terminal or a
# backlog.
LISTED_MAX = 100

HELP = """/nick NAME        take another name
/join ROOM        go to another room
/who              who is in this room
/rooms            the rooms, and how many are in each
/me TEXT          say what you do
/msg NAME TEXT    tell one member only, in whatever room
/quit             leave
//TEXT            say a line that begins with a slash"""


class Member:
    """One client in the chat. `gone` is true once the client has left."""

    __slots__ = ("_backlog", "_bucket", "_commands", "_limits", "_seat", "_show_status", "gone")

    def __init__(self, seat: Seat, backlog: Backlog, limits: Limits, show_status: Callable[[str], None]) -> None:
        self._seat = seat
        self._backlog = backlog
        self._limits = limits
        self._show_status = show_status
        self._bucket = Bucket(limits.max_rate, limits.max_burst, monotonic())
        self._commands: dict[str, Callable[[str], None]] = {
            "/nick": self._nick,
            "/join": self._join,
            "/who": self._who,
            "/rooms": self._rooms,
            "/me": self._me,
            "/msg": self._msg,
            "/quit": self._quit,
            "/help": self._help,
        }
        self.gone = False

    def tell(self, text: str) -> None:
        """Send a line of the chat to the client."""
        self._backlog.add(f"*** {text}\n".encode())

    def arrive(self) -> None:
        """Greet the client, and announce the client to the room."""
        self.tell(f"Welcome to the chat, {self._seat.name}. /help lists the commands.")
        self._enter()

    def leave(self, *, silently: bool = False) -> None:
        """Leave the chat, if the client has not left yet. The room is told unless `silently`."""
        if self.gone:
            return
        self.gone = True
        try:
            if not silently:
                self._announce(f"{self._seat.name} left #{self._seat.room}")
        finally:
            self._seat.leave()

    def announce_departed(self) -> None:
        """Announce the members of the room that were found dead."""
        while self._seat.departed:
            text = f"{self._seat.departed.pop()} was disconnected"
            self.tell(text)
            self._announce(text)

    def obey(self, line: bytes, cut: bool) -> None:
        """Act on one line of the client. `cut` says that the line was longer."""
        if not line.strip():
            return
        if not self._bucket.take(monotonic()):
            if self._bucket.notice_due():
                self.tell(f"Too fast: lines are dropped. The limit is {self._limits.max_rate} a second.")
            return
        if cut:
            self.tell(f"That line was cut: a line has at most {self._limits.max_line} bytes.")
        text = clean_line(line)
        try:
            if text.startswith("/") and not text.startswith("//"):
                self._command(text)
            elif text:
                self._seat.broadcast(f"<{self._seat.name}> {text.removeprefix('/')}")
        except TimeoutError:
            # A signal has stopped the process that holds the chat's lock. Nothing has changed.
            self.tell("The chat is busy; please try again.")

    def _command(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        command = self._commands.get(word.lower())
        if command is None:
            self.tell(f"There is no command {word}; /help lists the commands.")
        else:
            command(rest.strip())

    def _announce(self, text: str) -> None:
        self._seat.broadcast(f"*** {text}")

    def _enter(self) -> None:
        self._show_status(f"#{self._seat.room} as {self._seat.name}")
        self._announce(f"{self._seat.name} joined #{self._seat.room}")
        self._who("")

    def _nick(self, name_text: str) -> None:
        old_name, name = self._seat.name, common_form(name_text)
        if problem := name_problem(name, self._limits.max_name):
            self.tell(problem)
        elif name == old_name:
            self.tell(f"You are {name} already.")
        elif not self._seat.rename(name):
            self.tell(f"The name {name} is taken.")
        else:
            self._show_status(f"#{self._seat.room} as {name}")
            self.tell(f"You are now {name}.")
            self._announce(f"{old_name} is now {name}")

    def _join(self, room_text: str) -> None:
        room = common_form(room_text).removeprefix("#")
        if problem := name_problem(room, self._limits.max_room):
            self.tell(problem)
        elif room == self._seat.room:
            self.tell(f"You are in #{room} already.")
        else:
            self._announce(f"{self._seat.name} left #{self._seat.room}")
            self._seat.move(room)
            self._enter()

    def _who(self, _: str) -> None:
        names = self._seat.members(self._seat.room)
        more = f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
        self.tell(f"{len(names)} in #{self._seat.room}: {', '.join(names[:LISTED_MAX])}{more}")

    def _rooms(self, _: str) -> None:
        rooms = self._seat.rooms()
        for room, members in rooms[:LISTED_MAX]:
            self.tell(f"#{room} {members}")
        if len(rooms) > LISTED_MAX:
            self.tell(f"and {len(rooms) - LISTED_MAX} more")

    def _me(self, text: str) -> None:
        if text:
            self._seat.broadcast(f"* {self._seat.name} {text}")
        else:
            self.tell("Write /me TEXT.")

    def _msg(self, rest: str) -> None:
        name_text, _, text = rest.partition(" ")
        name = common_form(name_text)
        if not text:
            self.tell("Write /msg NAME TEXT.")
        elif name_problem(name, FILE_NAME_MAX) or not self._seat.whisper(name, f"[{self._seat.name} to you] {text.lstrip()}"):
            self.tell(f"Nobody here is called {name}.")

    def _help(self, _: str) -> None:
        for line in HELP.splitlines():
            self.tell(line)

    def _quit(self, _: str) -> None:
        self.tell("Goodbye.")
        self.leave()

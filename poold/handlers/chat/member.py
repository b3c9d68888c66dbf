"""What a client's lines mean: the commands of the chat, and what the client is told.

A `Member` is the chat as its client sees it. It writes into the backlog and to other sessions, and never to the socket. What
the chat itself says begins with "*** ", which no member can imitate: what members say begins with "<", "* " or "[".
"""

from __future__ import annotations

from time import monotonic

from poold.handlers.chat.text import FILE_NAME_MAX, Bucket, clean, common_form, name_problem

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Callable

    from poold.handlers.chat.options import Limits
    from poold.handlers.chat.room import Seat
    from poold.handlers.chat.text import Backlog

# A line of the chat's own is not to outgrow what a terminal shows or a backlog holds.
SHOWN = 100

HELP = """/nick NAME        take another name
/join ROOM        go to another room
/who              who is in this room
/rooms            the rooms, and how many are in each
/me TEXT          say what you do
/msg NAME TEXT    tell one member only, in whatever room
/quit             leave
//TEXT            say a line that begins with a slash"""


class Member:
    """One client in the chat. `gone` is true once it has left."""

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
        """Say something to the client."""
        self._backlog.add(f"*** {text}\n".encode())

    def arrive(self) -> None:
        """Greet the client, and announce it to the room."""
        self.tell(f"Welcome to the chat, {self._seat.name}. /help lists the commands.")
        self._enter()

    def leave(self, *, silently: bool = False) -> None:
        """Leave the chat, if the client has not yet; the room is told unless `silently`."""
        if self.gone:
            return
        self.gone = True
        try:
            if not silently:
                self._announce(f"{self._seat.name} left #{self._seat.room}")
        finally:
            self._seat.leave()

    def announce_departed(self) -> None:
        """Say which members of the room were found dead."""
        while self._seat.departed:
            text = f"{self._seat.departed.pop()} was disconnected"
            self.tell(text)
            self._announce(text)

    def obey(self, line: bytes, cut: bool) -> None:
        """Act on one line of the client's; `cut` says that it was longer."""
        if not line.strip():
            return
        if not self._bucket.take(monotonic()):
            if self._bucket.notice_due():
                self.tell(f"Too fast: lines are dropped. The limit is {self._limits.max_rate} a second.")
            return
        if cut:
            self.tell(f"That line was cut: a line has at most {self._limits.max_line} bytes.")
        text = clean(line)
        try:
            if text.startswith("/") and not text.startswith("//"):
                self._command(text)
            elif text:
                self._seat.broadcast(f"<{self._seat.name}> {text.removeprefix('/')}")
        except TimeoutError:
            # Someone who holds the chat's lock was stopped in the midst; nothing has changed.
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

    def _nick(self, given: str) -> None:
        before, name = self._seat.name, common_form(given)
        if problem := name_problem(name, self._limits.max_name):
            self.tell(problem)
        elif name == before:
            self.tell(f"You are {name} already.")
        elif not self._seat.rename(name):
            self.tell(f"The name {name} is taken.")
        else:
            self._show_status(f"#{self._seat.room} as {name}")
            self.tell(f"You are now {name}.")
            self._announce(f"{before} is now {name}")

    def _join(self, given: str) -> None:
        room = common_form(given).removeprefix("#")
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
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        self.tell(f"{len(names)} in #{self._seat.room}: {', '.join(names[:SHOWN])}{more}")

    def _rooms(self, _: str) -> None:
        rooms = self._seat.rooms()
        for room, members in rooms[:SHOWN]:
            self.tell(f"#{room} {members}")
        if len(rooms) > SHOWN:
            self.tell(f"and {len(rooms) - SHOWN} more")

    def _me(self, text: str) -> None:
        if text:
            self._seat.broadcast(f"* {self._seat.name} {text}")
        else:
            self.tell("Write /me TEXT.")

    def _msg(self, rest: str) -> None:
        given, _, text = rest.partition(" ")
        name = common_form(given)
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

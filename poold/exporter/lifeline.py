"""The exporter's end of the lifeline: asks whether the master's loop turns, answers when the master asks, hears the end.

Who asks before a question is sent shares it, and with it whatever is made of the answer; who asks later waits for the next one,
because an answer that is on its way already may be of a moment before.
"""

import asyncio
import socket

from poold.exporter.answer import Answer
from poold.exporter.formats import Format
from poold.lifeline import ANSWER, QUESTION, WORDS_MAX


class Moment:
    """One question to the master: whether it was answered, and what was made for those who asked at that time, by format."""

    __slots__ = ("_answered", "made")

    def __init__(self) -> None:
        self._answered = asyncio.get_running_loop().create_future()
        self.made: dict[Format, Answer] = {}

    def settle(self) -> None:
        """Note that the master has answered."""
        if not self._answered.done():
            self._answered.set_result(None)

    async def answered(self, seconds: float) -> bool:
        """Wait so long at most; say whether the master's loop has turned since the question."""
        await asyncio.wait((self._answered,), timeout=seconds)
        return self._answered.done()


class Lifeline:
    """Asks and answers; `ended` is done when the master wants this process to leave. To be made inside a running loop."""

    def __init__(self, end: socket.socket) -> None:
        """Own a stream that does not block."""
        self._end = end
        self._loop = asyncio.get_running_loop()
        # The question that is open, and the one that is sent after its answer.
        self._open: Moment | None = None
        self._next: Moment | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(end, self._read)

    def ask(self) -> Moment:
        """Ask the master now."""
        if self._next is None:
            self._next = Moment()
            # Not before everybody has asked for whom it is time in this turn of the loop.
            self._loop.call_soon(self._send_next)
        return self._next

    def _send_next(self) -> None:
        if self._open is not None or self._next is None:
            return
        self._open, self._next = self._next, None
        if self.ended.done():
            # The end is a word of the master's too, and the last one: its loop has turned. (With a dead master this process is dead.)
            self._answered()
        else:
            self._say(QUESTION)

    def _say(self, word: bytes) -> None:
        try:
            self._end.send(word, socket.MSG_NOSIGNAL)
        except OSError:
            # The master is gone, and the end of the stream, which is on its way, says so. It cannot be full: see `poold.lifeline`.
            return

    def _read(self) -> None:
        try:
            words = self._end.recv(WORDS_MAX)
        except BlockingIOError:
            return
        except ConnectionResetError:
            # The master has gone with a question unread: an end all the same.
            words = b""
        if not words:
            self._loop.remove_reader(self._end)
            self.ended.set_result(None)
        if QUESTION in words:
            self._say(ANSWER)
        if ANSWER in words or not words:
            self._answered()

    def _answered(self) -> None:
        if self._open is not None:
            self._open.settle()
            self._open = None
        self._send_next()

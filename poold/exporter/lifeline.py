"""The exporter's end of the lifeline: asks whether the master's loop turns, and answers the master.

Exchanges that ask before a question is sent share the question, and what is made of the answer. An
exchange that asks later waits for the next question, because the answer that is on its way may tell
of an earlier moment.
"""

import asyncio
import socket

from poold.exporter.answer import Answer
from poold.exporter.formats import Format
from poold.lifeline import ANSWER, QUESTION, WORDS_MAX


class Inquiry:
    """One question to the master, and the expositions made after the answer, by format."""

    __slots__ = ("_answered", "expositions")

    def __init__(self) -> None:
        self._answered = asyncio.get_running_loop().create_future()
        self.expositions: dict[Format, Answer] = {}

    def settle(self) -> None:
        """Note that the master has answered."""
        if not self._answered.done():
            self._answered.set_result(None)

    async def answered(self, seconds: float) -> bool:
        """Wait at most so long; return whether the master's loop has turned since the question."""
        await asyncio.wait((self._answered,), timeout=seconds)
        return self._answered.done()


class Lifeline:
    """Asks the master, and answers the master's questions.

    `ended` is done when the master wants this process to leave.

    A Lifeline is made inside a running loop.
    """

    def __init__(self, end: socket.socket) -> None:
        """Take over the exporter's end of the stream, which does not block."""
        self._end = end
        self._loop = asyncio.get_running_loop()
        # The question that is open, and the question that is sent after its answer.
        self._open: Inquiry | None = None
        self._next: Inquiry | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(end, self._read)

    def ask(self) -> Inquiry:
        """Return the next question to the master, which this turn of the loop sends."""
        if self._next is None:
            self._next = Inquiry()
            # The other exchanges of this turn of the loop ask first, and share the question.
            self._loop.call_soon(self._send_next)
        return self._next

    def _send_next(self) -> None:
        if self._open is not None or self._next is None:
            return
        self._open, self._next = self._next, None
        if self.ended.done():
            # A living master has closed the stream in its loop, so the loop has turned. The
            # exporter of a dead master is dead (prctl(2), PR_SET_PDEATHSIG).
            self._answered()
        else:
            self._say(QUESTION)

    def _say(self, word: bytes) -> None:
        try:
            self._end.send(word, socket.MSG_NOSIGNAL)
        except OSError:
            # The master is gone, and the end of the stream will say so. The stream cannot be full:
            # see `poold.lifeline`.
            return

    def _read(self) -> None:
        try:
            words = self._end.recv(WORDS_MAX)
        except BlockingIOError:
            return
        except ConnectionResetError:
            # The master has gone with a question unread.
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

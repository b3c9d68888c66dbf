"""The door: the only place where a connection is let in or refused.

listeners: accept ─▶ door: room? ─▶ pool: a worker for the connection ─▶ the session's end
                      └──▶ linger: the refusal, and a clean end
"""

from typing import Protocol

from poold.log import log
from poold.master.clients.linger import Linger
from poold.master.clients.sessions import Accepted
from poold.master.current import Current
from poold.master.phase import Life
from poold.scoreboard import REFUSED, Counters
from poold.words import Refusal


class PoolView(Protocol):
    """What the door needs of the pool.

    `poold.master.pool.pool.Pool` implements this protocol, because this folder must not import
    `pool`.
    """

    def accepts(self) -> bool:
        """Say whether the master may accept one more connection.

        The connection would then get a worker, or be refused because the pool is full.
        """

    def has_room(self) -> bool:
        """Say whether one more connection would get a worker."""

    def full(self) -> bool:
        """Say whether `pool.max_children` is the reason why there is no room."""

    def take(self, accepted: Accepted) -> None:
        """Make a session of an accepted connection, and hand the session over to a worker."""


class Door:
    """Decides whether the master accepts, and what becomes of each accepted connection."""

    def __init__(self, *, life: Life, current: Current, pool: PoolView, linger: Linger, counters: Counters) -> None:
        self._life = life
        self._current = current
        self._pool = pool
        self._linger = linger
        self._counters = counters

    def is_open(self) -> bool:
        """Say whether one more connection may be accepted, to be served or refused."""
        return self._life.accepts and self._pool.accepts()

    def enter(self, accepted: Accepted) -> None:
        """Let an accepted connection in, or refuse the connection.

        From here on the connection is either a session or refused, never both.
        """
        if self._pool.has_room():
            self._pool.take(accepted)
        else:
            self._refuse(accepted)

    def _refuse(self, accepted: Accepted) -> None:
        reason = Refusal.FULL if self._pool.full() else Refusal.NO_RESOURCES
        self._counters.cells[REFUSED[reason]] += 1
        log.info("connection_refused", reason=reason, peer=accepted.peer, listener=accepted.listener)
        self._linger.refuse(accepted.socket, self._current.config.pool.refuse_message.encode())

"""The listeners and the gate.

While the gate is open, the master watches the listeners. While the gate is closed, clients wait in
the kernel's backlog.
"""

import errno
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from poold.address import Address, Endpoint
from poold.channel import Wire
from poold.errors import ConfigError
from poold.log import log
from poold.master.clients import sockets
from poold.master.clients.door import Door
from poold.master.clients.listening import ListenerPart, ListenersPart, Listening
from poold.master.clients.sessions import Accepted
from poold.master.clients.sockdiag import queue_length
from poold.master.clients.sockets import Opened, address_of, retune, somaxconn
from poold.master.clients.store import Store
from poold.master.current import Current
from poold.master.engine.deadlines import Callback
from poold.master.engine.loop import Loop
from poold.master.phase import Life
from poold.plain import AF_UNIX, SOCK_STREAM
from poold.scoreboard import ACCEPT_ERRORS, ACCEPTED, ACCEPTING, BACKLOG, BACKLOG_KNOWN, BACKLOG_LIMIT, NOT_ACCEPTING_SINCE, Counters
from poold.settings.config import Config, Listener

# The most accepts of one listener in one turn. A busy listener then delays neither signals nor the
# other listeners.
ACCEPTS_MAX = 16
# The seconds without accept after the kernel was out of a resource. No event would tell that the
# resource is there again.
PAUSE = 0.1
# The seconds for which the queue of a removed listener is served at most, where `timeouts.drain` is
# not longer.
EMPTY_SECONDS = 30.0
# Errors of one client's connection that was gone before the accept (accept(2), "Error handling").
# The next accept may work.
PASSING = {
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
    errno.EPERM,
    errno.ETIMEDOUT,
}


class Listeners:
    """The open listeners, and whether the master watches the listeners."""

    def __init__(self, *, life: Life, current: Current, loop: Loop, counters: Counters, door: Door, store: Store) -> None:
        self._life = life
        self._current = current
        self._loop = loop
        self._counters = counters
        self._door = door
        self._store = store
        self._open: list[Listening] = []
        self._watched = False
        self._pause_until = 0.0

    def add(self, opened: Opened, listener: Listener) -> None:
        """Take over an open socket. Adding the socket again changes nothing.

        Raises LookupError when there is no cell left for another listener's name.
        """
        if not any(each.opened is opened for each in self._open):
            self._warn_unreachable(self._add(opened, listener))

    def _add(self, opened: Opened, listener: Listener) -> Listening:
        listening = Listening(opened, listener, self._counters.listener(listener.name), int(opened.socket.family))
        self._open.append(listening)
        # The master opens the gate again in this turn, and the new listener is watched as well.
        steps = [partial(self.gate, False), partial(self._store.keep, opened, listener), partial(_announce, listening)]
        self._loop.call_each_with_retry(steps)
        return listening

    def open(self, *, patience: float) -> None:
        """Open the listeners of the settings, or go on with sockets from the store.

        `patience` is how many seconds to wait for another poold that makes the same socket file.
        Raises ConfigError, LookupError.
        """
        listeners = self._current.config.listeners
        stored = {listener.address: self._store.find(listener) for listener in listeners}
        for name in sorted(set(self._store.passed) - {listener.address.name for listener in listeners}):
            log.warning("passed_socket_unused", name=name, hint=f'add a [[listener]] with address = "systemd://{name}"')
        # The unused stored sockets are closed before any listener is opened. An address that has
        # moved from one listener to another is free then.
        self._store.clear()
        for listener in listeners:
            found = stored[listener.address]
            for opened in [found] if found is not None else sockets.open_listener(listener, self._store.passed, patience=patience):
                self.add(opened, listener)

    def save(self) -> ListenersPart:
        """Return the open listeners.

        The part has the addresses as the settings write the addresses, and what cannot be changed
        on an open listener.
        """
        return ListenersPart(listeners=tuple(listening.save() for listening in self._open))

    def restore(self, part: ListenersPart) -> None:
        """Take over the listeners of the previous program.

        A listener whose descriptor is not there is opened anew. Raises ConfigError, LookupError.
        """
        config = self._current.config
        wanted = {listener.address: listener for listener in config.listeners}
        for each in part.listeners:
            listener = wanted.get(Address.parse(each.address))
            if each.leaving or listener is None:
                listener = _former_settings(each, config)
            try:
                several = [sockets.restore_socket(each.name, each.socket, self._store.passed)]
            except ConfigError as error:
                log.error("listener_lost", listener=each.name, reason=str(error.problems[0]))
                several = sockets.open_listener(listener, self._store.passed)
            for opened in several:
                self._inherit(opened, listener, leaving=each.leaving)

    def _inherit(self, opened: Opened, listener: Listener, *, leaving: bool) -> None:
        listening = self._add(opened, listener)
        if leaving:
            listening.leaving = True
            # The same time as for a listener that begins to leave now.
            listening.deadline = self._loop.after(self._seconds_to_empty(), partial(self._close, listening))
        else:
            self._retune(listening)

    def __iter__(self) -> Iterator[Listening]:
        return iter(self._open)

    def change(self, listener: Listener) -> None:
        """Apply other settings to the open listener of this address."""
        for listening in self._staying_at(listener):
            if listening.listener == listener:
                continue
            listening.listener = listener
            listening.number = self._counters.listener(listener.name)
            self._retune(listening)

    def _retune(self, listening: Listening) -> None:
        try:
            retune(listening.opened, listening.listener)
        except (OSError, KeyError) as error:
            log.warning("listener_not_changed", listener=listening.name, error=str(error))

    def dismiss(self, listener: Listener) -> None:
        """Close the listener of this address once its queue is empty.

        A listener that the service manager has passed is closed at once.
        """
        self._close_when_empty(listener, seconds=self._seconds_to_empty())

    def _seconds_to_empty(self) -> float:
        return max(self._current.config.timeouts.drain, EMPTY_SECONDS)

    def _close_when_empty(self, listener: Listener, *, seconds: float) -> None:
        for listening in self._staying_at(listener):
            if listening.opened.passed_by_manager:
                self._close(listening)
            else:
                listening.deadline = self._loop.after(seconds, partial(self._close, listening))
                listening.leaving = True

    def drain(self, *, seconds: float) -> None:
        """Close every listener once its queue is empty, or after `seconds`.

        The listeners that the service manager has passed are served as long as the drain lasts.
        """
        for listening in list(self._open):
            listening.empty = False
            if not listening.opened.passed_by_manager:
                self._close_when_empty(listening.listener, seconds=seconds)

    def drained(self) -> bool:
        """Say whether all queues are empty that the drain has to empty.

        A listener of this master's own is closed once its queue is empty. A passed listener stays
        open, and its last accept must have found an empty queue.
        """
        return all(listening.opened.passed_by_manager and listening.empty for listening in self._open)

    def empty_queues(self) -> bool:
        """Accept from the queues that are to be emptied, also where epoll reports nothing.

        Only an accept tells that a queue is empty. Return whether there is more to accept.
        """
        to_be_emptied = self._to_be_emptied()
        if not to_be_emptied:
            return False
        for listening in to_be_emptied:
            if self._watched:
                self._accept(listening)
        return self._watched and self._door.is_open() and bool(self._to_be_emptied())

    def _to_be_emptied(self) -> list[Listening]:
        return [listening for listening in self._open if listening.leaving or (self._life.drains and not listening.empty)]

    def _staying_at(self, listener: Listener) -> list[Listening]:
        return [listening for listening in self._open if listening.listener.address == listener.address and not listening.leaving]

    def gate(self, open: bool) -> None:
        """Watch the listeners, or stop watching. The same value again changes nothing."""
        open = open and self._loop.clock() >= self._pause_until
        if open == self._watched:
            return
        self._watched = open
        cells = self._counters.cells
        cells[ACCEPTING] = open
        cells[NOT_ACCEPTING_SINCE] = 0 if open else int(self._loop.clock() * 1_000_000)
        if not open:
            for listening in self._open:
                self._loop.forget(listening.opened.socket)
            return
        # The first listener of the last time is the last one now. With room for one connection
        # only, one busy listener would otherwise get the room each time.
        self._open = self._open[1:] + self._open[:1]
        try:
            for listening in self._open:
                self._loop.watch(listening.opened.socket, partial(self._accept, listening))
        except OSError as error:
            log.warning("accept_error", listener=listening.name, errno=errno.errorcode.get(error.errno or 0), pause_seconds=PAUSE)
            self._pause()

    def _accept(self, listening: Listening) -> None:
        for _ in range(ACCEPTS_MAX):
            if not self._watched or not self._door.is_open():
                return
            try:
                # The method that socket.accept() wraps. The wrapper looks up three enumerations at
                # each connection.
                fd, raw = listening.opened.socket._accept()  # type: ignore[attr-defined] # noqa: SLF001
            except BlockingIOError:
                listening.empty = True
                if listening.leaving:
                    self._close(listening)
                return
            except OSError as error:
                if not self._note_accept_error(listening, error):
                    return
                continue
            accepted = Wire(listening.family, SOCK_STREAM, 0, fd)
            if listening.family == AF_UNIX:
                peer = Endpoint.unix_peer(accepted)
            else:
                peer = Endpoint.of(listening.family, raw)
            self._counters.cells[ACCEPTED[listening.number]] += 1
            self._door.enter(Accepted(accepted, listening.name, listening.number, peer, self._loop.clock()))

    def _note_accept_error(self, listening: Listening, error: OSError) -> bool:
        """Count an error of accept. Return whether to accept again at once."""
        number = error.errno or 0
        name = errno.errorcode.get(number, "other")
        self._counters.cells[ACCEPT_ERRORS.get(name, ACCEPT_ERRORS["other"])] += 1
        if number in PASSING:
            return True
        log.warning("accept_error", listener=listening.name, errno=name, pause_seconds=PAUSE)
        self._pause()
        return False

    def _pause(self) -> None:
        """Watch no listener for `PAUSE` seconds."""
        self._pause_until = self._loop.clock() + PAUSE
        self._loop.at(self._pause_until, lambda: None)
        self.gate(False)

    def describe(self) -> list[dict[str, str]]:
        """Return name and address of each open listener."""
        return [{"name": listening.name, "address": address_of(listening.opened.socket)} for listening in self._open]

    def unreachable(self) -> set[Address]:
        """Return the addresses whose socket file was removed or replaced.

        A reload opens these listeners anew. The listeners that leave are closed anyway.
        """
        return {each.listener.address for each in self._open if not each.leaving and not each.opened.reachable()}

    def measure(self) -> None:
        """Write the lengths of the kernel's queues into the counters, and log lost socket files.

        The master calls this for a scrape, and never periodically.
        """
        cells = self._counters.cells
        for listening in self._open:
            self._warn_unreachable(listening)
            queued = queue_length(listening.opened.socket)
            cells[BACKLOG_KNOWN[listening.number]] = queued is not None
            cells[BACKLOG[listening.number]], cells[BACKLOG_LIMIT[listening.number]] = queued or (0, 0)

    def _warn_unreachable(self, listening: Listening) -> None:
        """Log, once, that clients do not find a listener's socket file."""
        if not listening.unreachable_logged and not listening.leaving and not listening.opened.reachable():
            listening.unreachable_logged = True
            log.warning("socket_file_lost", listener=listening.name, hint="a reload makes it again")

    def close(self) -> None:
        """Close every listener, and remove the socket files of this master."""
        self._loop.call_each(partial(self._close, listening) for listening in list(self._open))

    def _close(self, listening: Listening) -> None:
        """Close a listener, taking every step also after one has failed."""
        self._open.remove(listening)
        steps: list[Callback] = [] if listening.deadline is None else [listening.deadline.cancel]
        steps.append(partial(self._loop.forget, listening.opened.socket))
        steps.append(partial(self._store.drop, listening.opened, listening.listener))
        steps += [listening.opened.close, partial(self._note_closed, listening)]
        self._loop.call_each_with_retry(steps)

    def _note_closed(self, listening: Listening) -> None:
        self._counters.cells[BACKLOG_KNOWN[listening.number]] = 0
        log.info("listener_closed", listener=listening.name)


def _former_settings(part: ListenerPart, config: Config) -> Listener:
    """Return settings for a listener that the settings no longer have.

    The master only empties the queue of this listener.
    """
    former = replace(config.listeners[0], address=Address.parse(part.address), name=part.name)
    # The listener's name in the store depends on these two.
    return replace(former, interface=part.interface, freebind=part.freebind)


def _announce(listening: Listening) -> None:
    """Log the listener's address, and a backlog that the kernel has cut."""
    opened, listener = listening.opened, listening.listener
    log.info("listening", listener=listening.name, address=address_of(opened.socket))
    most = None if opened.passed_by_manager else somaxconn()
    if most is not None and listener.backlog > most:
        log.warning("backlog_cut", listener=listening.name, backlog=listener.backlog, somaxconn=most)

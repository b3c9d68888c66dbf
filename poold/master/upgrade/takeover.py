"""From the state document of the program before to the parts of this one. Every number is proved before it is relied on.

A descriptor is what the document says it is or it is not used; a listener whose socket is not there is opened anew; a pid that is
no child of ours is a child whose exit status is lost. What stands in the document and what is true differ only if somebody has
meddled with the process, and then the sessions that can be kept are kept.
"""

import socket
from collections.abc import Mapping
from dataclasses import replace

from poold import __version__
from poold.address import Address, Endpoint
from poold.channel import Wire
from poold.errors import ConfigError
from poold.log import log
from poold.master.children.table import Child
from poold.master.clients import sockets
from poold.master.clients.sessions import Session
from poold.master.clients.sockets import Opened
from poold.master.document import tally
from poold.master.document.state import ChildPart, ListenerPart, PeerPart, SessionPart, SocketPart, StateDocument
from poold.master.outside.control import Control, Reply, Verb
from poold.master.parts import Parts
from poold.master.pool import activity
from poold.scoreboard import LOOP_ERRORS
from poold.settings.config import Config, Listener
from poold.words import Kind, State

# How long the queue of a listener that was being emptied is served at the most.
EMPTY_SECONDS = 30.0
Passed = Mapping[str, list[socket.socket]]


def adopt(parts: Parts, state: StateDocument, *, passed: Passed, verbs: Mapping[str, Verb]) -> Reply | None:
    """Take over what the program before has left; return what answers whoever asked for the upgrade.

    The mold that it has started for us is used if it is of this version. Raises ConfigError, OSError, LookupError.
    """
    tally.resume(parts.counters, state.tally)
    parts.loop.errors = parts.counters.cells[LOOP_ERRORS]
    _listen(parts, state, passed)
    parts.control = Control(loop=parts.loop, opened=_control(state.control, passed), verbs=verbs)
    if state.metrics is not None:
        parts.exporters.listener = _metrics(state.metrics, passed, parts.current.config)
    for part in state.children:
        _child(parts, part)
    parts.table.settle_slots()
    parts.sessions.last_id = max(parts.sessions.last_id, state.last_session)
    _start(parts, state.mold.pid if state.mold is not None and state.mold.version == __version__ else 0)
    parts.reaper.reconcile()
    for fd in state.lingering:
        refused = _connection(fd)
        if refused is not None:
            parts.linger.inherit(refused)
    return _requester(parts.control, state.requester)


def _listen(parts: Parts, state: StateDocument, passed: Passed) -> None:
    config = parts.current.config
    wanted = {listener.address: listener for listener in config.listeners}
    for part in state.listeners:
        listener = wanted.get(Address.parse(part.address))
        if part.leaving or listener is None:
            listener = _former(part, config)
        try:
            opened = [_opened(part.name, part.socket, passed)]
        except ConfigError as error:
            log.error("listener_lost", listener=part.name, reason=str(error.problems[0]))
            opened = sockets.open_listener(listener, passed)
        for each in opened:
            parts.listeners.inherit(each, listener, leaving=part.leaving, seconds=max(config.timeouts.drain, EMPTY_SECONDS))


def _control(part: SocketPart, passed: Passed) -> Opened:
    try:
        return _opened("control", part, passed)
    except ConfigError as error:
        log.error("listener_lost", listener="control", reason=str(error.problems[0]))
        return sockets.open_control(part.path, patience=0)


def _metrics(part: SocketPart, passed: Passed, config: Config) -> Opened | None:
    try:
        return _opened("metrics", part, passed)
    except ConfigError as error:
        log.error("listener_lost", listener="metrics", reason=str(error.problems[0]))
    try:
        return sockets.open_metrics(config.metrics.listen) if config.metrics.listen is not None else None
    except ConfigError as error:
        # No session is ended for the want of metrics; the next reload opens them.
        log.error("listener_lost", listener="metrics", reason=str(error.problems[0]))
        return None


def _requester(control: Control, fd: int | None) -> Reply | None:
    asking = _connection(fd) if fd is not None else None
    return control.inherit(socket.socket(fileno=asking.detach()), "upgrade") if asking is not None else None


def _connection(fd: int) -> Wire | None:
    """Return a client's connection, None where the descriptor is none: then there is nobody who waits for anything."""
    try:
        connection = Wire(fileno=fd)
        if connection.type != socket.SOCK_STREAM or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            connection.detach()
            raise OSError("it is not one")
    except OSError as error:
        log.error("channel_lost", kind="client", error=str(error))
        return None
    return connection


def _former(part: ListenerPart, config: Config) -> Listener:
    """Return settings for a listener that has none any more: its queue is emptied and its copy taken out of the service manager's store."""
    # The copy there is named by what the socket was bound with.
    return replace(
        config.listeners[0], address=Address.parse(part.address), name=part.name, interface=part.interface, freebind=part.freebind
    )


def _opened(name: str, part: SocketPart, passed: Passed) -> Opened:
    """Return a listening socket that the document names. Raises ConfigError when the descriptor is none."""
    file = None if part.file is None else (part.file[0], part.file[1])
    if part.lent:
        adopted = next(each for several in passed.values() for each in several if each.fileno() == part.fd)
    else:
        adopted = sockets.adopt(name, part.fd)
    adopted.setblocking(False)
    return Opened(adopted, part.path, file, part.lent)


def _child(parts: Parts, part: ChildPart) -> None:
    child = Child(part.slot, part.incarnation, part.kind, part.generation, part.claimed_at)
    child.pid, child.state, child.ready = part.pid, part.state, part.ready
    child.excused, child.failure = part.excused, part.failure
    if part.channel is not None and part.state in (State.STARTING, State.SPARE, State.SERVING):
        child.channel = _channel(part)
    if part.page is not None and activity.is_page(part.page):
        child.page = part.page
    if part.session is not None:
        child.session = _session(parts, part.session)
        parts.sessions.inherit(child.session)
    parts.table.inherit(child)
    parts.ladder.resume(child)


def _channel(part: ChildPart) -> Wire | None:
    """Return the master's end of a child's channel. What is no channel is closed by nobody: it may be anything."""
    assert part.channel is not None
    try:
        end = Wire(fileno=part.channel)
        if end.family != socket.AF_UNIX:
            end.detach()
            raise OSError("it is not one")
    except OSError as error:
        log.error("channel_lost", kind=part.kind, pid=part.pid, error=str(error))
        return None
    end.setblocking(False)
    return end


def _session(parts: Parts, part: SessionPart) -> Session:
    number = parts.counters.listener(part.listener)
    session = Session(part.id, part.listener, number, _peer(part.peer), part.accepted_at, None)
    session.executing, session.cause = part.executing, part.cause
    return session


def _peer(part: PeerPart) -> Endpoint:
    # `raw` is what an assignment needs, and this session has been assigned.
    return Endpoint(part.family, raw=None, host=part.host, port=part.port, path=part.path, pid=part.pid, uid=part.uid, gid=part.gid)


def _start(parts: Parts, mold: int) -> None:
    """Hand each child to who looks after its kind, and start what there is none of."""
    for child in parts.table:
        match child.kind:
            case Kind.WORKER:
                parts.pool.inherit(child)
            case Kind.MOLD:
                parts.molds.inherit(child, use=child.pid == mold)
            case Kind.EXPORTER:
                parts.exporters.inherit(child)
            case Kind.LOGGER:
                parts.loggers.inherit(child)
    parts.loggers.start()
    parts.molds.start()
    parts.exporters.start()

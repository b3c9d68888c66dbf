"""From the parts of this master to the state document for the next program. Looks and changes nothing."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poold.master.children.table import Child
from poold.master.clients.sessions import Session
from poold.master.clients.sockets import Opened
from poold.master.document import tally
from poold.master.document.state import ChildPart, ListenerPart, MoldPart, PassedPart, PeerPart, SessionPart, SocketPart, StateDocument
from poold.master.parts import Parts


@dataclass(frozen=True, slots=True)
class Origin:
    """What the next program must know that no part holds: where this one has its settings from and what it was started with."""

    file: Path | None
    started_at: float
    passed: Mapping[str, list[socket.socket]]
    environ: Mapping[str, str] = field(repr=False)


def take(parts: Parts, origin: Origin, *, verdict: Mapping[str, Any], mold: MoldPart | None = None) -> StateDocument:
    """Return the state as it is now, for the settings of a trial's verdict (none yet: an empty one)."""
    assert parts.control is not None
    config, metrics = parts.current.config, parts.exporters.listener
    return StateDocument(
        file=str(origin.file) if origin.file is not None else None,
        settings=dict(verdict.get("settings", {})),
        people=dict(verdict.get("people", {})),
        warnings=tuple(verdict.get("warnings", ())),
        generation=parts.current.generation,
        started_at=origin.started_at,
        last_session=parts.sessions.last_id,
        limits=parts.launcher.limits,
        listeners=_listeners(parts),
        passed=tuple(PassedPart(name, each.fileno()) for name, several in origin.passed.items() for each in several),
        metrics=_socket(metrics) if metrics is not None else None,
        metrics_address=str(config.metrics.listen) if config.metrics.listen is not None else None,
        control=_socket(parts.control.opened),
        control_setting=config.control.socket,
        requester=parts.control.waiting("upgrade"),
        lingering=tuple(parts.linger.descriptors()),
        activity=parts.activities.common,
        phase=parts.memories.phase_fd,
        children=tuple(_child(child) for child in parts.table if child.pid),
        mold=mold,
        streams=parts.launcher.streams.part(),
        tally=tally.taken(parts.counters),
    )


def _socket(opened: Opened) -> SocketPart:
    return SocketPart(opened.socket.fileno(), opened.path, opened.file, opened.lent)


def _listeners(parts: Parts) -> tuple[ListenerPart, ...]:
    return tuple(
        ListenerPart(
            address=str(listening.listener.address),
            name=listening.name,
            socket=_socket(listening.opened),
            interface=listening.listener.interface,
            freebind=listening.listener.freebind,
            leaving=listening.leaving,
        )
        for listening in parts.listeners
    )


def _child(child: Child) -> ChildPart:
    # A session that is not acknowledged is not here: it is waited for before the document that counts is made.
    session = child.session if child.session is not None and child.session.acknowledged else None
    return ChildPart(
        slot=child.slot,
        incarnation=child.incarnation,
        kind=child.kind,
        generation=child.generation,
        pid=child.pid,
        state=child.state,
        claimed_at=child.claimed_at,
        ready=child.ready,
        excused=child.excused,
        failure=child.failure,
        channel=child.channel.fileno() if child.channel is not None else None,
        page=child.page,
        session=_session(session) if session is not None else None,
    )


def _session(session: Session) -> SessionPart:
    peer = session.peer
    return SessionPart(
        id=session.id,
        listener=session.listener,
        peer=PeerPart(int(peer.family), peer.host, peer.port, peer.path, peer.pid, peer.uid, peer.gid),
        accepted_at=session.accepted_at,
        executing=session.executing,
        cause=session.cause,
    )

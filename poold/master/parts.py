"""The parts of the master, built and introduced to each other. No part imports this; the master owns it."""

import fcntl
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from poold.log import log
from poold.master import descriptors
from poold.master.children.exporters import Exporters
from poold.master.children.ladder import Ladder
from poold.master.children.loggers import Loggers
from poold.master.children.spawn import Launcher
from poold.master.children.streams import Streams
from poold.master.children.table import ChildTable
from poold.master.clients import sockets
from poold.master.clients.linger import Linger
from poold.master.clients.listeners import Listeners
from poold.master.clients.sessions import Sessions
from poold.master.clients.store import Store
from poold.master.current import Current
from poold.master.document.state import StateDocument
from poold.master.engine.deadlines import Callback
from poold.master.engine.loop import Loop
from poold.master.outside.control import Control, Verb
from poold.master.outside.gauges import Gauges
from poold.master.pool.activity import Activities
from poold.master.pool.births import Births
from poold.master.pool.failures import Failures
from poold.master.pool.handover import HandOver
from poold.master.pool.molds import Molds
from poold.master.pool.orders import Orders
from poold.master.pool.pool import Pool
from poold.master.reaper import Reaper
from poold.pages import PAGE, Phase
from poold.scoreboard import SLOTS, Counters, Table, keep_size, read_only, shared_memory
from poold.settings.config import Config
from poold.words import Kind

# How long a start waits for another one that makes the same socket file.
LOCK_PATIENCE = 5.0


@dataclass(slots=True)
class Memories:
    """The shared memories: the master's own, and what others get of them.

    `phase` is mapped by workers for as long as they live: the program after this one takes it over, and the pages of the workers.
    """

    counters: Counters
    rows: Table
    phase: Phase
    phase_fd: int
    # Read-only: the phase page for molds; counters and rows for whoever asks on the control socket.
    phase_view: int
    views: list[int]
    activities: Activities


def share(inherited: StateDocument | None = None) -> Memories:
    """Make the shared memories, or those that are not inherited. Raises OSError."""
    counters, rows = Counters(), Table()
    if inherited is None:
        common, phase = shared_memory("activity", SLOTS * PAGE), shared_memory("phase", PAGE)
    else:
        common, phase = inherited.activity, _phase(inherited.phase)
    try:
        keep_size(phase)
    except PermissionError:
        # Done by the program before.
        pass
    views = [read_only(fd) for fd in (counters.fd, rows.fd)]
    return Memories(counters, rows, Phase(phase), phase, read_only(phase), views, Activities(common))


def _phase(fd: int) -> int:
    """Return the phase page of the program before, or another one where that is none: touching what is not there would be fatal."""
    try:
        if os.fstat(fd).st_size < PAGE:
            raise OSError(f"it has {os.fstat(fd).st_size} bytes")
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        log.error("phase_lost", error=str(error))
        return shared_memory("phase", PAGE)
    return fd


def _limits(config: Config, inherited: StateDocument | None) -> tuple[int, int]:
    """Raise the limit of open files and return what children are to have: what the first program was started with. Raises ConfigError."""
    before = descriptors.raise_limit(config)
    return before if inherited is None else (inherited.limits[0], inherited.limits[1])


class Parts:
    """Everything the master is made of, but its own phase."""

    def __init__(
        self,
        current: Current,
        loop: Loop,
        environ: Mapping[str, str],
        inherited: StateDocument | None = None,
        launcher: type[Launcher] = Launcher,
    ) -> None:
        self.current = current
        self.loop = loop
        self.memories = memories = share(inherited)
        self.counters = counters = memories.counters
        self.table = table = ChildTable()
        self.sessions = sessions = Sessions(counters)
        self.failures = Failures(loop, memories.phase)
        sessions.on_end = self.failures.ended
        log.later = loop.after
        self.ladder = ladder = Ladder(current=current, loop=loop, table=table)
        self.births = births = Births(table, counters)
        self.handover = handover = HandOver(current=current, loop=loop, table=table, sessions=sessions, counters=counters, ladder=ladder)
        self.activities = activities = memories.activities
        self.orders = orders = Orders(current=current, loop=loop, table=table, births=births, ladder=ladder, activities=activities)
        self.pool = pool = Pool(current=current, loop=loop, table=table, births=births, orders=orders, handover=handover, ladder=ladder)
        self.gauges = Gauges(current=current, loop=loop, table=table, sessions=sessions, pool=pool, counters=counters, rows=memories.rows)
        self.reaper = Reaper(
            loop=loop,
            table=table,
            births=births,
            pool=pool,
            orders=orders,
            handover=handover,
            ladder=ladder,
            counters=counters,
            activities=activities,
        )
        self.linger = Linger(loop)
        self.listeners = Listeners(loop=loop, counters=counters)
        self.launcher = launcher(environ, _limits(current.config, inherited), _streams(inherited))
        self._keepers()
        self.control: Control | None = None
        self._introduce()

    def _keepers(self) -> None:
        """Make those who keep a child of one kind."""
        current, loop, table, ladder, counters = self.current, self.loop, self.table, self.ladder, self.counters
        launcher = self.launcher
        self.loggers = Loggers(current=current, loop=loop, table=table, ladder=ladder, counters=counters, launcher=launcher)
        self.molds = Molds(
            current=current,
            loop=loop,
            table=table,
            ladder=ladder,
            pool=self.pool,
            orders=self.orders,
            counters=counters,
            phase=self.memories.phase_view,
            common=self.activities.common,
            launcher=launcher,
        )
        self.exporters = Exporters(current=current, loop=loop, table=table, ladder=ladder, counters=counters, launcher=launcher)

    def _introduce(self) -> None:
        """Tell the reaper who knows what about which kind, and the molds' keeper which mold is of no use."""
        self.reaper.hear_out[Kind.MOLD] = self.molds.hear_out
        self.orders.on_failed = self.molds.failing
        self.reaper.on_exit = {Kind.MOLD: self.molds.exited, Kind.EXPORTER: self.exporters.exited, Kind.LOGGER: self.loggers.exited}

    def open(self, *, passed: Mapping[str, list[socket.socket]], store: Store, control_path: str, verbs: Mapping[str, Verb]) -> None:
        """Start the logger, and open every socket that the settings ask for. Raises ConfigError; what was open by then is for `close`."""
        self.loggers.start()
        config = self.current.config
        stored = {listener.address: store.find(listener) for listener in config.listeners}
        # Before anything else is opened: an address that has moved from one listener to another is free then.
        store.clear()
        for listener in config.listeners:
            found = stored[listener.address]
            for opened in [found] if found is not None else sockets.open_listener(listener, passed, patience=LOCK_PATIENCE):
                self.listeners.add(opened, listener)
        self.control = Control(loop=self.loop, opened=sockets.open_control(control_path, patience=LOCK_PATIENCE), verbs=verbs)
        if config.metrics.listen is not None:
            self.exporters.listener = sockets.open_metrics(config.metrics.listen)
            log.info("metrics_listening", address=sockets.address(self.exporters.listener.socket))

    def look(self) -> None:
        """Find out what nobody tells: how full the kernel's queues are, which socket file has gone, what this process has used."""
        self.listeners.measure()
        if self.control is not None:
            self.control.renew()
        self.gauges.measure()

    def close(self) -> None:
        """Close every socket, remove the socket files that are ours, and say what was held back."""
        closing = (self.listeners, self.linger, self.control, self.exporters.listener)
        steps: list[Callback] = [each.close for each in closing if each is not None]
        self.loop.surely([*steps, self.failures.settle, partial(log.tell_held_back, all=True)])


def _streams(inherited: StateDocument | None) -> Streams:
    streams = Streams()
    if inherited is not None and inherited.streams is not None:
        streams.inherit(inherited.streams)
    else:
        streams.open()
    return streams

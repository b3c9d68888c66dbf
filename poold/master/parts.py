"""The parts of the master, each built from parts that were built before.

All parts are built in one pass, so no attribute of a part is set from outside. No part
imports this module. The master owns the parts.
"""

import time
from collections.abc import Iterable, Mapping, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

from poold.log import log
from poold.master import descriptors, memories
from poold.master.change.drain import Drain
from poold.master.change.reloads import Reloads
from poold.master.change.trials import Trials
from poold.master.children.exporters import Exporters
from poold.master.children.inheritance import Inheritance
from poold.master.children.ladder import Ladder
from poold.master.children.loggers import Loggers
from poold.master.children.reaper import Keeper, Reaper
from poold.master.children.spawn import Launcher
from poold.master.children.streams import Streams
from poold.master.children.succession import Starter
from poold.master.children.table import ChildTable
from poold.master.clients import sockets
from poold.master.clients.door import Door
from poold.master.clients.failures import Failures
from poold.master.clients.linger import Linger
from poold.master.clients.listeners import Listeners
from poold.master.clients.sessions import Sessions
from poold.master.clients.store import Store
from poold.master.current import Current
from poold.master.document.part import Owner
from poold.master.document.tally import Tally
from poold.master.engine.deadlines import Callback
from poold.master.engine.loop import Loop
from poold.master.engine.signals import Inbox
from poold.master.outside.control import Control, Verb
from poold.master.outside.gauges import Gauges
from poold.master.outside.manager import Manager
from poold.master.outside.views import Views
from poold.master.phase import Life
from poold.master.pool.activity import Activities
from poold.master.pool.births import Births
from poold.master.pool.handover import HandOver
from poold.master.pool.hearing import Hearing
from poold.master.pool.molds import Molds
from poold.master.pool.orders import Orders
from poold.master.pool.pool import Pool
from poold.master.pool.workers import Workers
from poold.master.upgrade.state import Origin, StateDocument
from poold.master.upgrade.upgrades import Upgrades
from poold.settings.config import Config
from poold.words import Kind

# Seconds that a start waits for another start that makes the same socket file.
LOCK_PATIENCE = 5.0


class Parts:
    """Everything that the master is made of."""

    def __init__(
        self,
        current: Current,
        *,
        loop: Loop,
        inbox: Inbox,
        verbs: Mapping[str, Verb],
        passed: Iterable[tuple[str, int]],
        file: Path | None,
        control: str,
        environ: MutableMapping[str, str],
        origin: Mapping[str, str],
        inherited: StateDocument | None,
        launcher: type[Launcher],
    ) -> None:
        """Build all parts. Nothing is opened, started or logged. Raises ConfigError.

        For the arguments see `poold.master.main.Master`.
        """
        self.life = Life()
        self.current = current
        self.loop = loop
        self._control_path = control
        self.started_at = time.monotonic() if inherited is None else inherited.started_at
        log.use_timer(loop.after)
        self.memories = memories.share(inherited)
        self.counters = self.memories.counters
        self.manager = Manager(environ, loop)
        self.store = Store(self.manager.store, passed)
        self.launcher = launcher(environ, _limits(current.config, inherited), _streams(inherited))
        self._build_children()
        self._build_workers()
        self._build_clients()
        self._build_keepers(inbox)
        self._build_outside(verbs)
        self._build_changes(inbox, file)
        self._build_upgrades(inbox, Origin(file, self.started_at, origin))

    def _build_children(self) -> None:
        """Build what all kinds of children need, and the sessions, which their table knows."""
        self.failures = Failures(self.loop, self.memories.phase_page)
        self.sessions = Sessions(self.counters, self.failures)
        self.table = ChildTable()
        self.ladder = Ladder(current=self.current, loop=self.loop, table=self.table)
        self.starter = Starter(self.loop, self.table, self.ladder, self.counters)

    def _build_workers(self) -> None:
        """Build what makes a worker: orders, births, the hand-over, and the policy of the pool."""
        life, current, loop, table, ladder, counters = self.life, self.current, self.loop, self.table, self.ladder, self.counters
        self.births = births = Births(table=table, counters=counters)
        self.activities = activities = Activities(self.memories.shared_activity)
        self.handover = handover = HandOver(
            current=current, loop=loop, table=table, ladder=ladder, sessions=self.sessions, counters=counters
        )
        self.hearing = hearing = Hearing(
            life=life,
            current=current,
            loop=loop,
            table=table,
            ladder=ladder,
            births=births,
            activities=activities,
            handover=handover,
        )
        self.molds = Molds(
            life=life,
            current=current,
            launcher=self.launcher,
            starter=self.starter,
            phase_page_fd=self.memories.phase_view,
            shared_activity=self.memories.shared_activity,
        )
        self.orders = Orders(
            life=life,
            current=current,
            loop=loop,
            table=table,
            ladder=ladder,
            births=births,
            activities=activities,
            molds=self.molds,
            hearing=hearing,
        )
        self.pool = Pool(
            life=life, current=current, loop=loop, table=table, ladder=ladder, births=births, orders=self.orders, handover=handover
        )

    def _build_clients(self) -> None:
        """Build a client's way from the listening socket to the pool."""
        life, current, loop, counters = self.life, self.current, self.loop, self.counters
        self.linger = Linger(loop)
        self.door = Door(life=life, current=current, pool=self.pool, linger=self.linger, counters=counters)
        self.listeners = Listeners(life=life, current=current, loop=loop, counters=counters, door=self.door, store=self.store)

    def _build_keepers(self, inbox: Inbox) -> None:
        """Build a keeper for each kind of children, and the reaper, which tells keepers of ends."""
        life, current, loop, table, ladder, counters = self.life, self.current, self.loop, self.table, self.ladder, self.counters
        starter, launcher = self.starter, self.launcher
        self.exporters = Exporters(life=life, current=current, launcher=launcher, starter=starter)
        self.loggers = Loggers(current=current, launcher=launcher, starter=starter)
        self.trials = Trials(current=current, loop=loop, table=table, ladder=ladder, counters=counters)
        workers = Workers(
            ladder=ladder,
            births=self.births,
            activities=self.activities,
            handover=self.handover,
            hearing=self.hearing,
            orders=self.orders,
            pool=self.pool,
            counters=counters,
        )
        self.keepers: dict[Kind, Keeper] = {
            Kind.WORKER: workers,
            Kind.MOLD: self.molds,
            Kind.EXPORTER: self.exporters,
            Kind.TRIAL: self.trials,
            Kind.LOGGER: self.loggers,
        }
        self.reaper = Reaper(inbox=inbox, loop=loop, table=table, ladder=ladder, counters=counters, unborn=workers, keepers=self.keepers)

    def _build_outside(self, verbs: Mapping[str, Verb]) -> None:
        """Build what other processes see of the master, and ask."""
        current, loop, table, sessions = self.current, self.loop, self.table, self.sessions
        self.gauges = Gauges(
            current=current,
            loop=loop,
            table=table,
            sessions=sessions,
            pool=self.pool,
            counters=self.counters,
            rows=self.memories.rows,
        )
        self.views = Views(
            life=self.life,
            current=current,
            loop=loop,
            table=table,
            sessions=sessions,
            listeners=self.listeners,
            handover=self.handover,
            activities=self.activities,
            memories=self.memories,
            manager=self.manager,
            started_at=self.started_at,
        )
        self.control = Control(loop=loop, verbs={"view": self.views.view, **verbs})

    def _build_changes(self, inbox: Inbox, file: Path | None) -> None:
        """Build what replaces the settings, and what ends the daemon."""
        self.drain = Drain(
            life=self.life,
            current=self.current,
            loop=self.loop,
            table=self.table,
            counters=self.counters,
            sessions=self.sessions,
            listeners=self.listeners,
            manager=self.manager,
            keepers=self.keepers,
            phase_page=self.memories.phase_page,
        )
        self.reloads = Reloads(
            life=self.life,
            current=self.current,
            loop=self.loop,
            inbox=inbox,
            counters=self.counters,
            launcher=self.launcher,
            trials=self.trials,
            manager=self.manager,
            sessions=self.sessions,
            listeners=self.listeners,
            pool=self.pool,
            molds=self.molds,
            exporters=self.exporters,
            loggers=self.loggers,
            file=file,
            passed=self.store.passed,
            wall_clock=time.time,
        )

    def _build_upgrades(self, inbox: Inbox, origin: Origin) -> None:
        """Build what replaces the program. The owners are listed in the order of restoring."""
        inheritance = Inheritance(table=self.table, ladder=self.ladder, sessions=self.sessions, reaper=self.reaper, keepers=self.keepers)
        # A child is given to its keeper after all that the child refers to has been restored.
        self.owners: tuple[Owner[Any], ...] = (
            origin,
            self.memories,
            self.launcher,
            Tally(self.counters),
            self.store,
            self.listeners,
            self.control,
            self.exporters,
            self.molds,
            inheritance,
            self.sessions,
            self.linger,
        )
        self.upgrades = Upgrades(
            life=self.life,
            current=self.current,
            loop=self.loop,
            inbox=inbox,
            ladder=self.ladder,
            counters=self.counters,
            launcher=self.launcher,
            trials=self.trials,
            tracees=self.reaper.tracees,
            manager=self.manager,
            sessions=self.sessions,
            pool=self.pool,
            molds=self.molds,
            reloads=self.reloads,
            origin=origin,
            owners=self.owners,
        )

    def open(self) -> None:
        """Start the logger, and open every socket of the settings.

        Raises ConfigError. `close` then closes what is open already.
        """
        self.loggers.start()
        self.listeners.open(patience=LOCK_PATIENCE)
        self.control.open(sockets.open_control(self._control_path, patience=LOCK_PATIENCE))
        metrics = self.current.config.metrics.listen
        if metrics is not None:
            self.exporters.open(metrics)

    def start(self) -> None:
        """Start the children of which there are none."""
        self.loggers.start()
        self.molds.start()
        self.exporters.start()

    def measure(self) -> None:
        """Measure what no event tells: the kernel's queues, lost socket files, CPU and memory."""
        self.listeners.measure()
        self.control.renew()
        self.gauges.measure()

    def close(self) -> None:
        """Close every socket, remove the master's socket files, and log what was held back."""
        steps: list[Callback] = [self.listeners.close, self.linger.close, self.control.close]
        if self.exporters.listener is not None:
            steps.append(self.exporters.listener.close)
        self.loop.call_each_with_retry([*steps, self.failures.settle, partial(log.tell_held_back, all=True)])


def _limits(config: Config, inherited: StateDocument | None) -> tuple[int, int]:
    """Raise the limit of open files, and return the limits for children.

    Children get the limits with which the first program was started. Raises ConfigError.
    """
    before = descriptors.raise_limit(config)
    return before if inherited is None else (inherited.limits[0], inherited.limits[1])


def _streams(inherited: StateDocument | None) -> Streams:
    streams = Streams()
    if inherited is not None and inherited.streams is not None:
        streams.restore(inherited.streams)
    else:
        streams.open()
    return streams

"""Keeps a mold: starts it, passes orders to it, replaces one that dies, is silent or is of no use, prepares the next generation's.

Workers that live do not notice any of it: they are the master's own children.

A mold of which no worker comes any more may have been spoilt by a session of the same user (prlimit(2)), or the machine may be out of
something. Who knows which it is? So it is not ended: a substitute is started beside it, and takes its place once it is ready.
"""

import errno
import os
from dataclasses import dataclass
from functools import partial

from poold import __version__, channel
from poold.channel import MoldReport, MoldWord
from poold.errors import ProtocolError
from poold.log import log
from poold.master.children.exits import Exit
from poold.master.children.ladder import Ladder
from poold.master.children.spawn import Launcher, Recipe
from poold.master.children.succession import Prepared, Starter, Succession
from poold.master.children.table import Child, ChildTable
from poold.master.current import Current
from poold.master.document.part import Part
from poold.master.engine.loop import Loop
from poold.master.engine.throttle import Throttle
from poold.master.phase import Life
from poold.master.pool.mold import Answered, Mold
from poold.scoreboard import MOLD_STARTS, Counters
from poold.words import Failure, Kind, State

# How long a mold may leave an order unanswered.
SILENCE = 2.0
# Reads of a dead mold's channel: more than it may have said.
HEARD_MAX = 64
# Between two substitutes, where no worker came of the last one either: twice as long each time, for an import may be heavy.
RENEWAL_MIN = 2.0
RENEWAL_MAX = 60.0


@dataclass(frozen=True, slots=True)
class MoldPart:
    """The mold that was started from the new code, and the version that it says it has."""

    pid: int
    version: str


@dataclass(frozen=True, kw_only=True)
class MoldsPart(Part):
    """The mold that the next program goes on with."""

    mold: MoldPart | None = None


class Molds(Succession[Mold]):
    """The mold in use, a candidate that is being prepared for other settings, or a substitute for the one in use."""

    def __init__(
        self,
        *,
        life: Life,
        current: Current,
        loop: Loop,
        table: ChildTable,
        ladder: Ladder,
        starter: Starter,
        counters: Counters,
        launcher: Launcher,
        phase: int,
        common: int,
    ) -> None:
        """`phase` is a descriptor of the phase page for molds, `common` what a mold of an older version asks for."""
        super().__init__(loop=loop, ladder=ladder)
        self._life = life
        self._current = current
        self._table = table
        self._starter = starter
        self._counters = counters
        self._launcher = launcher
        self._phase = phase
        self._common = common
        self._substitute: Mold | None = None
        self._renewals = Throttle(shortest=RENEWAL_MIN, longest=RENEWAL_MAX)
        self._told = ""
        self._heir = 0
        self._ever_ready = False
        # Why a mold ended before any was ever ready: what the file asks for cannot be served.
        self.failed_start = ""

    @property
    def in_use(self) -> Child | None:
        """The mold that takes orders, None while there is none."""
        used = self._used
        return used.child if used is not None and used.child.ready and used.child.channel is not None else None

    def start(self) -> None:
        """Start a mold for the settings in force; a failure is tried again later."""
        if self._life.stops or self._used is not None:
            return
        try:
            self._used = self._launch(self._recipe(self._current), self._current.generation)
        except OSError as error:
            self._start_later(str(error))

    def _recipe(self, settings: Current) -> Recipe:
        return self._launcher.recipe(settings.config, settings.people)

    def _launch(self, recipe: Recipe, generation: int, **more: int) -> Mold:
        def launch(theirs: int) -> int:
            return self._launcher.mold(recipe, channel=theirs, phase=self._phase, **more)

        child = self._starter.start(Kind.MOLD, generation, pair=channel.make_pair, launch=launch, read=self._readable)
        self._counters.cells[MOLD_STARTS] += 1
        mold = self._members[child] = Mold(child, seconds=recipe.seconds)
        self._ladder.within(child, recipe.seconds, partial(self._too_slow, mold))
        log.info("mold_started", pid=child.pid, generation=child.generation)
        return mold

    def prepare(self, settings: Current, prepared: Prepared) -> None:
        """Start the mold of other settings beside the one in use, and tell when it is ready or cannot be. Raises OSError."""
        self._prepare(self._recipe(settings), settings.generation, prepared)

    def prepare_foreign(self, recipe: Recipe, generation: int, prepared: Prepared) -> None:
        """Start a mold for another program's code like that, as its trial has put it down. Raises OSError."""
        self._prepare(recipe, generation, prepared, activity=self._common).foreign = True

    def _prepare(self, recipe: Recipe, generation: int, prepared: Prepared, **more: int) -> Mold:
        # It will be instead of the one in use, if it is of any use; until then one more is enough.
        substitute, self._substitute = self._substitute, None
        self._dismiss(substitute)
        candidate = self._candidate = self._launch(recipe, generation, **more)
        candidate.prepared = prepared
        return candidate

    def save(self) -> MoldsPart:
        """Return the mold that is prepared for the next program."""
        mold = self._candidate
        return MoldsPart(mold=MoldPart(mold.child.pid, mold.version) if mold is not None else None)

    def restore(self, part: MoldsPart) -> None:
        """Take note of the mold that the program before has started for this one: it is used if it is of this version."""
        mold = part.mold
        self._heir = mold.pid if mold is not None and mold.version == __version__ else 0

    def inherit(self, child: Child) -> None:
        """Take over a mold of the program before: for use, if that program has started it for this one, or to see it off."""
        # Only one that was ready is watched.
        mold = Mold(child, seconds=self._current.config.timeouts.import_, said=MoldWord.READY)
        self._members[child] = mold
        self._ever_ready = True
        if child.pid == self._heir and child.channel is not None:
            self._loop.watch(child.channel, partial(self._read, mold))
            self._used = mold
        elif not child.leaving:
            self._ladder.retire(child)

    def adopt(self) -> None:
        """Use the prepared mold from now on; others are asked to leave, and their open orders come to their end. Again changes nothing."""
        if self._candidate is not None:
            self._candidate.prepared = None
            self._used, self._candidate = self._candidate, None
        if self._used is not None:
            self._use(self._used)

    def _use(self, mold: Mold) -> None:
        """Have this mold take orders; the orders that are open with others come to their end."""
        self._used = mold
        for other in self._staying():
            if other not in (mold, self._candidate):
                self._ladder.retire(other.child, listen=True)

    def failing(self, child: Child, first: bool) -> None:
        """Take the news that no worker came of an order to this mold; `first` says that it is the first time since one did."""
        mold, now = self._used, self._loop.clock()
        if mold is None or mold.child is not child or self._life.stops:
            return
        if first:
            self._renewals.succeeded()
        hopeless = mold.failures.failed(now, first=first)
        if hopeless and self._candidate is None and self._substitute is None and self._renewals.open(now):
            self._renew(mold)

    def _renew(self, failing: Mold) -> None:
        """Start a substitute beside a mold that is of no use. Where that fails, the next failure is a reason to try again."""
        self._renewals.failed(self._loop.clock())
        log.warning("mold_failing", pid=failing.child.pid, failures=failing.failures.count, retry_seconds=self._renewals.delay)
        try:
            self._substitute = self._launch(self._recipe(self._current), self._current.generation)
        except OSError as error:
            log.error("mold_failed", reason=str(error), retry_seconds=self._renewals.delay)

    def _replace(self, substitute: Mold) -> None:
        """Use a substitute that is ready."""
        self._substitute = None
        log.info("mold_replaced", by=substitute.child.pid)
        self._use(substitute)

    def order(self, order: bytes, theirs: int, page: int | None, answered: Answered) -> Child:
        """Send an order with its descriptors to the mold in use, and return its row; `answered` is told the answer. Raises OSError."""
        mold = self._used
        if mold is None or mold.child.channel is None or not mold.child.ready:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        channel.send_order(mold.child.channel, order, theirs, page)
        slot, incarnation, _ = channel.read_order(order)
        mold.unanswered.append((slot, incarnation))
        mold.waiting[slot, incarnation] = answered
        if len(mold.unanswered) == 1:
            self._ladder.within(mold.child, SILENCE, partial(self._silent, mold))
        return mold.child

    def hear_out(self, child: Child) -> None:
        """Read all that a mold whose exit was seen still has to say: why it failed, or whom it has cloned."""
        # A dead mold's channel holds what it was allowed to say, and then its end; who else has it may go on, and is heard no more.
        for _ in range(HEARD_MAX):
            if not self._read(self._members[child]):
                return

    def _readable(self, child: Child) -> None:
        self._read(self._members[child])

    def _read(self, mold: Mold) -> bool:
        """Act on what a mold says, a bounded number of words; say whether there may be more."""
        return all(self._hear(mold) for _ in range(channel.MESSAGES_PER_TURN))

    def _hear(self, mold: Mold) -> bool:
        """Act on the next word of a mold; say whether there may be one more. What is left unread, epoll reports again."""
        if mold.child.channel is None:
            return False
        try:
            report = channel.receive_mold_report(mold.child.channel)
            if report is None:
                # Its exit is on its way; should it only have closed its end, it is of no use any more.
                self._give_up(mold, None)
                return False
            mold.says(report)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            # It ended without reading all its orders; what it said before can still be read.
            return True
        except ProtocolError as error:
            log.error("protocol_error", pid=mold.child.pid, error=str(error))
            mold.reason = mold.reason or f"it broke the protocol: {error}"
            self._give_up(mold, Failure.EXIT)
            return False
        self._on_report(mold, report)
        return True

    def _give_up(self, mold: Mold, failure: Failure | None) -> None:
        """End a mold that can be heard no more, or should not be."""
        self._close(mold)
        if not mold.child.leaving and not mold.child.exiting:
            self._ladder.expel(mold.child, failure)

    def _on_report(self, mold: Mold, report: MoldReport) -> None:
        match report.word:
            case MoldWord.HELLO:
                mold.version = report.text
                if report.text != __version__ and not mold.foreign:
                    mold.reason = f'poold {report.text} is installed now, and this master is {__version__}; run "poold upgrade"'
                    self._ladder.expel(mold.child, Failure.EXIT)
            case MoldWord.READY:
                self._ready(mold, threads=report.number)
            case MoldWord.FAILED:
                mold.reason, _, trace = report.text.partition("\n")
                log.error("handler_import_failed", reason=mold.reason, traceback=trace)
            case MoldWord.ANSWER:
                self._answered(mold, report)

    def _ready(self, mold: Mold, *, threads: int) -> None:
        if mold.child.leaving or mold.child.ready:
            return
        mold.child.ready = True
        self._ladder.relax(mold.child)
        self._table.move(mold.child, State.SERVING)
        self._throttle.succeeded()
        log.info("mold_ready", pid=mold.child.pid, seconds=self._loop.clock() - mold.child.claimed_at)
        if threads > 1:
            log.warning("mold_has_threads", threads=threads, hint="workers are forked twice, which is slower; start threads in the handler")
        mold.report_outcome(None)
        if mold is self._substitute:
            self._replace(mold)
        elif mold is self._used:
            self._ever_ready = True

    def _answered(self, mold: Mold, report: MoldReport) -> None:
        if not mold.child.leaving:
            if mold.unanswered:
                self._ladder.within(mold.child, SILENCE, partial(self._silent, mold))
            else:
                self._ladder.relax(mold.child)
        slot, incarnation, pid, number = report.answer
        mold.waiting.pop((slot, incarnation))((pid, number))

    def _too_slow(self, mold: Mold) -> None:
        mold.reason = f"the handler's import took longer than timeouts.import ({mold.seconds:g} s)"
        log.error("handler_import_failed", reason=mold.reason)
        self._ladder.expel(mold.child, Failure.TIMEOUT)

    def _silent(self, mold: Mold) -> None:
        log.error("mold_silent", pid=mold.child.pid, seconds=SILENCE, unanswered=len(mold.unanswered))
        self._ladder.expel(mold.child, Failure.TIMEOUT)
        # Not its exit but its silence is the reason for a new one: a process in the kernel's hands may take its time to die.
        self._close(mold)
        self._start_later("")

    def _close(self, mold: Mold) -> None:
        """Use this mold no more."""
        self._ladder.close_channel(mold.child)
        if self._used is mold:
            # A substitute that is not ready yet is what would be started now.
            self._used, self._substitute = self._substitute, None

    def exited(self, child: Child, exit: Exit) -> None:
        """Settle the end of a mold; start another one if it was the one in use."""
        mold = self._members.pop(child)
        for answered in mold.waiting.values():
            answered(None)
        reason = mold.reason or f"the mold ended with status {exit.status}"
        if mold is self._candidate:
            self._candidate = None
            mold.report_outcome(reason)
            return
        if mold is self._substitute:
            self._substitute = None
            self._renewals.failed(self._loop.clock())
            log.error("mold_failed", reason=reason, retry_seconds=self._renewals.delay)
            return
        self._close(mold)
        if self._life.stops:
            return
        if not self._ever_ready:
            self.failed_start = reason
        elif self._used is None:
            self._start_later(reason)

    def _log_failure(self, reason: str, *, first: bool) -> None:
        if first or reason != self._told:
            # Once for each reason, however often it is tried again.
            self._told = reason
            log.error("mold_failed", reason=reason, retry_seconds=self._throttle.delay)

"""Keeps the mold in use: starts molds, sends orders to one, and replaces one that fails.

A mold is replaced if the mold dies, is silent, or makes no workers. For other settings a mold is
prepared beside the one in use. Living workers go on, because they are children of the master and
not of the mold.

A mold may make no workers because a session of the same user has changed its limits (prlimit(2)).
The machine may also be short of a resource. The master cannot tell one from the other, so the mold
is not ended. A substitute is started beside the mold, and takes over when ready.
"""

import errno
import os
from functools import partial

from poold import __version__, channel
from poold.channel import MoldReport, MoldWord
from poold.errors import ProtocolError
from poold.log import log
from poold.master.children.exits import Exit
from poold.master.children.spawn import Launcher, Recipe
from poold.master.children.succession import Prepared, Starter, Succession
from poold.master.children.table import Child
from poold.master.current import Current
from poold.master.engine.throttle import Throttle
from poold.master.phase import Life
from poold.master.pool.mold import Mold, MoldPart, MoldsPart, OnAnswer
from poold.scoreboard import MOLD_STARTS
from poold.words import Failure, Kind

# Seconds in which a mold must answer an order.
ANSWER_SECONDS = 2.0
# The most rounds of reading a dead mold's channel. They suffice for all that a mold can have sent.
LAST_READS_MAX = 64
# Seconds between two substitutes, if no worker has come from the last one either. The time doubles,
# because an import may be heavy.
SUBSTITUTE_DELAY_MIN = 2.0
SUBSTITUTE_DELAY_MAX = 60.0


class Molds(Succession[Mold]):
    """The mold in use, and the one that is prepared: a candidate or a substitute.

    A candidate is for other settings. A substitute is for the settings in force.
    """

    def __init__(
        self,
        *,
        life: Life,
        current: Current,
        launcher: Launcher,
        starter: Starter,
        phase_page_fd: int,
        shared_activity: int,
    ) -> None:
        """`shared_activity` is the memory file that a mold of an older version asks for."""
        super().__init__(current=current, launcher=launcher, starter=starter)
        self._life = life
        self._phase_page_fd = phase_page_fd
        self._shared_activity = shared_activity
        self._substitute: Mold | None = None
        self._substitute_throttle = Throttle(shortest=SUBSTITUTE_DELAY_MIN, longest=SUBSTITUTE_DELAY_MAX)
        self._logged_reason = ""
        self._inherited_pid = 0
        self._ever_ready = False
        # Why a mold ended before any mold was ever ready.
        self.failed_start = ""

    @property
    def in_use(self) -> Child | None:
        """The mold that takes orders, or None if there is none."""
        used = self._used
        return used.child if used is not None and used.child.ready and used.child.channel is not None else None

    def _wanted(self) -> bool:
        return not self._life.stops

    def _launch_current(self) -> Mold:
        return self._launch(self._recipe(self._current), self._current.generation)

    def _recipe(self, settings: Current) -> Recipe:
        return self._launcher.recipe(settings.config, settings.people)

    def _launch(self, recipe: Recipe, generation: int, **more: int) -> Mold:
        def launch(child_end: int) -> int:
            return self._launcher.mold(recipe, channel=child_end, phase=self._phase_page_fd, **more)

        mold = self._starter.start(
            Kind.MOLD,
            generation,
            members=self._members,
            make=partial(Mold, seconds=recipe.seconds),
            pair=channel.make_pair,
            launch=launch,
            read=self._read_reports,
        )
        self._counters.cells[MOLD_STARTS] += 1
        self._ladder.set_deadline(mold.child, recipe.seconds, partial(self._on_import_timeout, mold))
        log.info("mold_started", pid=mold.child.pid, generation=generation)
        return mold

    def prepare(self, settings: Current, prepared: Prepared) -> None:
        """Start a mold for other settings beside the one in use. Raises OSError.

        `prepared` is called when the mold is ready, or cannot be used.
        """
        self._prepare(self._recipe(settings), settings.generation, prepared)

    def prepare_foreign(self, recipe: Recipe, generation: int, prepared: Prepared) -> None:
        """Start a mold from the next program's code, by the recipe of its trial. Raises OSError."""
        self._prepare(recipe, generation, prepared, activity=self._shared_activity).foreign = True

    def _prepare(self, recipe: Recipe, generation: int, prepared: Prepared, **more: int) -> Mold:
        # The candidate will replace the mold in use, so the mold in use needs no substitute.
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
        """Note the mold that the previous program has started, if the mold's version is right."""
        mold = part.mold
        self._inherited_pid = mold.pid if mold is not None and mold.version == __version__ else 0

    def inherit(self, child: Child) -> None:
        """Use a mold that the previous program has started for this one. Ask any other to leave."""
        # The previous program has prepared this mold until READY.
        mold = Mold(child, seconds=self._current.config.timeouts.import_, last_word=MoldWord.READY)
        self._members[child] = mold
        self._ever_ready = True
        if child.pid == self._inherited_pid and child.channel is not None:
            self._loop.watch(child.channel, partial(self._read_reports, mold))
            self._used = mold
        elif not child.leaving:
            self._ladder.retire(child)

    def adopt(self) -> None:
        """Use the prepared mold. Others work off their orders and leave.

        Calling this again changes nothing.
        """
        if self._candidate is not None:
            self._candidate.prepared = None
            self._used, self._candidate = self._candidate, None
        if self._used is not None:
            self._use(self._used)

    def _use(self, mold: Mold) -> None:
        """Send orders to this mold. The other molds work off their open orders and leave."""
        self._used = mold
        for other in self._staying():
            if other not in (mold, self._candidate):
                self._ladder.retire(other.child, listen=True)

    def note_failure(self, child: Child, first: bool) -> None:
        """Note that no worker has come from an order. `first`: the first such failure in a row."""
        mold, now = self._used, self._loop.clock()
        if mold is None or mold.child is not child or self._life.stops:
            return
        if first:
            self._substitute_throttle.succeeded()
        hopeless = mold.failures.failed(now, first=first)
        if hopeless and self._candidate is None and self._substitute is None and self._substitute_throttle.open(now):
            self._start_substitute(mold)

    def _start_substitute(self, failing: Mold) -> None:
        """Start a substitute for a failing mold. If that fails, the next failed order retries."""
        self._substitute_throttle.failed(self._loop.clock())
        log.warning("mold_failing", pid=failing.child.pid, failures=failing.failures.count, retry_seconds=self._substitute_throttle.delay)
        try:
            self._substitute = self._launch_current()
        except OSError as error:
            log.error("mold_failed", reason=str(error), retry_seconds=self._substitute_throttle.delay)

    def _use_substitute(self, substitute: Mold) -> None:
        """Use a substitute that is ready."""
        self._substitute = None
        log.info("mold_replaced", by=substitute.child.pid)
        self._use(substitute)

    def order(self, order: bytes, worker_end: int, page: int | None, on_answer: OnAnswer) -> Child:
        """Send an order with its descriptors to the mold in use, and return the mold's row.

        `on_answer` is called with the mold's answer. Raises OSError.
        """
        mold = self._used
        if mold is None or mold.child.channel is None or not mold.child.ready:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        channel.send_order(mold.child.channel, order, worker_end, page)
        slot, incarnation, _ = channel.read_order(order)
        mold.unanswered.append((slot, incarnation))
        mold.on_answers[slot, incarnation] = on_answer
        if len(mold.unanswered) == 1:
            self._ladder.set_deadline(mold.child, ANSWER_SECONDS, partial(self._on_silence, mold))
        return mold.child

    def hear_out(self, child: Child) -> None:
        """Read the last reports of a mold that is about to be reaped: errors, pids of workers."""
        # A dead mold's channel holds the mold's reports, and then ends. Another process that has
        # the channel may send more, which is not read.
        for _ in range(LAST_READS_MAX):
            if not self._read_reports(self._members[child]):
                return

    def _read_reports(self, mold: Mold) -> bool:
        """Act on a bounded number of a mold's reports. Return whether there may be more."""
        return all(self._read_report(mold) for _ in range(channel.MESSAGES_PER_TURN))

    def _read_report(self, mold: Mold) -> bool:
        """Act on the next report. Return whether to try once more."""
        # epoll reports again what is left unread.
        if mold.child.channel is None:
            return False
        try:
            report = channel.receive_mold_report(mold.child.channel)
            if report is None:
                # The mold's exit follows. A mold that has only closed its channel cannot be used,
                # either.
                self._give_up(mold, None)
                return False
            mold.note_report(report)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            # The mold has ended without reading all orders. What the mold sent before can still be
            # read.
            return True
        except ProtocolError as error:
            log.error("protocol_error", pid=mold.child.pid, error=str(error))
            mold.reason = mold.reason or f"it broke the protocol: {error}"
            self._give_up(mold, Failure.EXIT)
            return False
        self._on_report(mold, report)
        return True

    def _give_up(self, mold: Mold, failure: Failure | None) -> None:
        """End a mold that cannot be read any more, or must not be."""
        self._stop_using(mold)
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
                self._on_ready(mold, threads=report.number)
            case MoldWord.FAILED:
                mold.reason, _, trace = report.text.partition("\n")
                log.error("handler_import_failed", reason=mold.reason, traceback=trace)
            case MoldWord.ANSWER:
                self._on_answer(mold, report)

    def _on_ready(self, mold: Mold, *, threads: int) -> None:
        if mold.child.leaving or mold.child.ready:
            return
        self._mark_ready(mold.child)
        log.info("mold_ready", pid=mold.child.pid, seconds=self._loop.clock() - mold.child.claimed_at)
        if threads > 1:
            log.warning("mold_has_threads", threads=threads, hint="workers are forked twice, which is slower; start threads in the handler")
        mold.report_outcome(None)
        if mold is self._substitute:
            self._use_substitute(mold)
        elif mold is self._used:
            self._ever_ready = True

    def _on_answer(self, mold: Mold, report: MoldReport) -> None:
        if not mold.child.leaving:
            if mold.unanswered:
                self._ladder.set_deadline(mold.child, ANSWER_SECONDS, partial(self._on_silence, mold))
            else:
                self._ladder.clear_deadline(mold.child)
        slot, incarnation, pid, number = report.answer
        mold.on_answers.pop((slot, incarnation))((pid, number))

    def _on_import_timeout(self, mold: Mold) -> None:
        mold.reason = f"the handler's import took longer than timeouts.import ({mold.seconds:g} s)"
        log.error("handler_import_failed", reason=mold.reason)
        self._ladder.expel(mold.child, Failure.TIMEOUT)

    def _on_silence(self, mold: Mold) -> None:
        log.error("mold_silent", pid=mold.child.pid, seconds=ANSWER_SECONDS, unanswered=len(mold.unanswered))
        self._ladder.expel(mold.child, Failure.TIMEOUT)
        # A new mold is started now and not at the exit: a process that hangs in the kernel may die
        # late.
        self._stop_using(mold)
        self._start_later("")

    def _stop_using(self, mold: Mold) -> None:
        """Send no more orders to this mold."""
        self._ladder.close_channel(mold.child)
        if self._used is mold:
            # A substitute takes the place of a new mold, even if the substitute is not ready yet.
            self._used, self._substitute = self._substitute, None

    def exited(self, child: Child, exit: Exit) -> None:
        """Settle the end of a mold. Start another one if this was the one in use."""
        mold = self._members.pop(child)
        for on_answer in mold.on_answers.values():
            on_answer(None)
        reason = mold.reason or f"the mold ended with status {exit.status}"
        if mold is self._candidate:
            self._candidate = None
            mold.report_outcome(reason)
            return
        if mold is self._substitute:
            self._substitute = None
            self._substitute_throttle.failed(self._loop.clock())
            log.error("mold_failed", reason=reason, retry_seconds=self._substitute_throttle.delay)
            return
        self._stop_using(mold)
        if self._life.stops:
            return
        if not self._ever_ready:
            self.failed_start = reason
        elif self._used is None:
            self._start_later(reason)

    def _log_failure(self, reason: str, *, first: bool) -> None:
        if first or reason != self._logged_reason:
            # Each reason is logged once, however many tries fail for the same reason.
            self._logged_reason = reason
            log.error("mold_failed", reason=reason, retry_seconds=self._throttle.delay)

"""What a reload and an upgrade have in common: one runs at a time, and each one ends.

    trial ─▶ prepare: start the awaited parts ─▶ all ready ─▶ complete
      └──────────────┴─────────────────────────────┴──▶ fail

Whatever a step raises fails the change. If a message is lost inside poold, a deadline fails it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from poold.errors import OWN_FAULT, ConfigError, Problem
from poold.master.change import trials
from poold.master.engine.deadlines import Callback, Deadline
from poold.master.engine.loop import Loop
from poold.master.phase import Life

# Seconds that the master waits for a trial, a mold or another part beyond their own deadline.
GRACE_SECONDS = 10.0

# Gets the answer to the request: a document that tells how the change has ended.
OnEnd = Callable[[dict[str, Any]], object]


@dataclass(slots=True, eq=False)
class Change:
    """A reload or an upgrade that runs."""

    on_end: OnEnd
    # The parts that must be ready before the change can be completed.
    awaited: set[str] = field(default_factory=set)
    deadline: Deadline | None = None


C = TypeVar("C", bound=Change)


class Changes(ABC, Generic[C]):
    """Runs changes of one kind, one at a time."""

    # The setting to blame for each awaited part that cannot be used.
    _KEYS: ClassVar[Mapping[str, str]]

    def __init__(self, *, life: Life, loop: Loop) -> None:
        self._life = life
        self._loop = loop
        self._running: C | None = None

    @property
    def running(self) -> bool:
        """Return whether a change of this kind runs."""
        return self._running is not None

    @abstractmethod
    def _start_trial(self, change: C) -> None:
        """Start the trial. Raises ConfigError, OSError."""

    @abstractmethod
    def _prepare(self, change: C, verdict: dict[str, Any]) -> None:
        """Start what the change awaits, after a good verdict. Raises ConfigError, OSError."""

    @abstractmethod
    def _complete(self, change: C) -> None:
        """Go on when every awaited part is ready. Raises ConfigError."""

    @abstractmethod
    def _fail(self, change: C, problems: list[Problem]) -> None:
        """Give up what was prepared, if this change still runs."""

    def _run(self, change: C) -> None:
        """Begin a change."""
        self._fail_after(change, trials.TRIAL_SECONDS + GRACE_SECONDS, "the trial")
        self._running = change
        self._run_step(change, partial(self._start_trial, change))

    def _run_step(self, change: C, step: Callback) -> None:
        """Take a step if this change still runs. Any exception fails the change."""
        if change is not self._running or self._life.ends:
            # When the master ends, `advance` refuses what still runs.
            return
        try:
            step()
        except ConfigError as error:
            self._fail(change, error.problems)
        except OSError as error:
            self._fail(change, [Problem("", str(error))])
        except Exception as error:
            self._fail(change, [OWN_FAULT])
            self._loop.note_error(error)

    def _set_deadline(self, change: C, seconds: float, callback: Callback) -> None:
        if change.deadline is not None:
            change.deadline.cancel()
        change.deadline = self._loop.after(seconds, callback)

    def _fail_after(self, change: C, seconds: float, what: str) -> None:
        """Fail this change if the next message is not there in time.

        The sender's own deadline is earlier, so a message that is still missing is lost.
        """
        overdue = [Problem("", f"{what} has not been heard of for {seconds:g} s")]
        self._set_deadline(change, seconds, lambda: self._fail(change, overdue))

    def _on_verdict(self, change: C, verdict: dict[str, Any], problems: list[Problem]) -> None:
        """Take the trial's verdict."""

        def act() -> None:
            if problems:
                raise ConfigError(problems)
            self._prepare(change, verdict)

        self._run_step(change, act)

    def _on_prepared(self, change: C, part: str, reason: str | None) -> None:
        """Take the news that an awaited part is ready, or why the part cannot be used."""
        if reason is not None:
            problem = Problem(self._KEYS[part], reason)
            self._run_step(change, partial(self._fail, change, [problem]))
            return
        change.awaited.discard(part)
        if not change.awaited:
            self._run_step(change, partial(self._complete, change))

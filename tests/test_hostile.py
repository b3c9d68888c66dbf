"""Attacks of the hostile campaign that have found faults, one by one: the whole campaign is `python -m tests.soak.hostile`."""

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from tests.needs import needs_root
from tests.procfs import children_of, take_orphans
from tests.soak.hostile.attack import Attack
from tests.soak.hostile.crowd import HELD, Crowd
from tests.soak.hostile.logwatch import event_of
from tests.soak.hostile.plan import ATTACKS, plan
from tests.soak.hostile.scene import Scene
from tests.soak.hostile.verdict import Failures, Verdict
from tests.waiting import eventually

# Honest sessions a second: that there are some is what counts here.
RATE = 15
FOUND_FAULTS = """
    truncate-everything grow-everything seal-everything scribble-over-memory pose-as-siblings make-mappings-writable
    stopped-orphans traced-orphan-that-executes truncate-the-log unblock-the-log read-the-log forge-log-lines lock-the-log
    close-everything close-and-open-others main-thread-ends spoiled-interpreter odd-exceptions broken-streams
    look-into-others take-descriptors-of-others scrapers-bad-accept clients-connect-and-reset
    import-forks-and-both-come-back import-changes-signals import-sets-a-timer import-floods-its-channel import-lowers-open-files
    settings-empty no-memory
""".split()
# What a daemon does not withstand yet, and why. A row goes when the fault is mended: the test says so by failing.
NOT_YET: dict[str, str] = {}
BY_NAME = {attack.name: attack for attack in ATTACKS}


class Stage:
    """One daemon among honest sessions, for attack after attack; another one after an attack that it has not withstood."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.scene: Scene | None = None
        self.failures = Failures(limit=1)

    def ready(self) -> Scene:
        """Return the daemon, started if need be."""
        if self.scene is not None and not self.scene.dead() and not self.failures.found:
            return self.scene
        self.close()
        self._before = children_of(os.getpid())
        self.failures = Failures(limit=1)
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="poold-hostile-"))
        self.scene = scene = Scene(Path(folder), piped=False)
        scene.start()
        self.crowd = Crowd(scene.connect, RATE, self.failures.add)
        self.verdict = Verdict(scene, self.failures, self.crowd.pids)
        self.crowd.start()
        return scene

    def close(self, *, final: bool = False) -> list[str]:
        """Stop it; return what is wrong at the end, where one is asked for."""
        scene, self.scene = self.scene, None
        if scene is None:
            return []
        dead = scene.dead()
        self.crowd.stop()
        if final and not dead:
            self.verdict.final()
        self.verdict.close()
        scene.sweep()
        wrong = scene.close()
        scene.sweep()
        take_orphans(self._before)
        self._stack.close()
        return [*wrong, *(text for text, _ in self.failures.found.values())]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A stage for the tests of this module; at its end, the last daemon must be as it was at its beginning."""
    assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER: what a daemon leaves is found
    stage = Stage()
    yield stage
    withstood = stage.scene is not None and not stage.failures.found
    wrong = stage.close(final=withstood)
    assert not wrong or not withstood, wrong


CASES = [
    pytest.param(BY_NAME[name], id=name, marks=[pytest.mark.xfail(reason=NOT_YET[name], strict=True)] if name in NOT_YET else [])
    for name in FOUND_FAULTS
]


@needs_root
@pytest.mark.parametrize("attack", CASES)
def test_attack(stage: Stage, attack: Attack) -> None:
    """The daemon lives through it, honest sessions are served meanwhile, everybody holds what he may, and no law is broken."""
    scene = stage.ready()
    served = stage.crowd.served
    attack.act(scene, Random(attack.name))
    scene.sweep()
    eventually(lambda: scene.dead() or stage.failures.found or stage.crowd.served > served + 2, "honest sessions")
    stage.verdict.look()
    if scene.dead():
        stage.verdict.death()
    assert not stage.failures.found, "\n".join(text for text, _ in stage.failures.found.values())


def test_the_seed_settles_the_plan() -> None:
    """The same seed gives the same attacks in the same order with the same numbers; every attack is in the first round."""
    for lane in {attack.lane for attack in ATTACKS}:
        count = sum(attack.lane is lane for attack in ATTACKS)
        one, two, other = (plan(seed, lane) for seed in (1, 1, 2))
        first = [next(one) for _ in range(2 * count)]
        again = [next(two) for _ in range(2 * count)]
        assert [(step.number, step.attack, step.random.random()) for step in first] == [
            (step.number, step.attack, step.random.random()) for step in again
        ]
        assert {step.attack for step in first[:count]} == {attack for attack in ATTACKS if attack.lane is lane}
        assert [step.attack for step in first] != [next(other).attack for _ in range(2 * count)]
        name = first[count // 2].attack.name
        only = next(plan(1, lane, [name]))
        assert (only.number, only.attack.name) == (count // 2 + 1, name)


def test_names_are_unique() -> None:
    """Attacks are told by their names."""
    assert len(BY_NAME) == len(ATTACKS)
    assert HELD > 0


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ('{"time": "2026-01-01T00:00:00.000Z", "level": "info", "event": "ready"}', "ready"),
        ("2026-01-01T00:00:00.000Z info ready seconds=1", "ready"),
        ("what a session prints", ""),
        ('{"event": ', ""),
        ("[1]", ""),
        ('x {"event": "ready"}', ""),
    ],
)
def test_which_lines_are_events(line: str, event: str) -> None:
    """A line is poold's own when it is written as poold writes, in either format."""
    assert event_of(line) == event

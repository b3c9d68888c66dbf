"""Runs the campaign: see the package."""

import argparse
import ctypes
import os
import random
import shlex
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import tests.soak.hostile as campaign
from tests.procfs import children_of, take_orphans
from tests.soak.hostile.attack import Lane
from tests.soak.hostile.crowd import Crowd
from tests.soak.hostile.plan import ATTACKS, Step, plan
from tests.soak.hostile.scene import Scene
from tests.soak.hostile.verdict import Failures, Verdict

PR_SET_CHILD_SUBREAPER = 36
# Kinds of failures after which a campaign ends before its time, and daemons that may die before it does.
FAILURES_MAX = 40
DEATHS_MAX = 20
SHOWN = 30


class Run:
    """One run of the campaign, with as many daemons as die in it and one more."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.seed: int = arguments.seed
        self.rate: float = arguments.rate
        self.until = time.monotonic() + 60 * arguments.minutes
        self.steps: dict[Lane, Iterator[Step]] = {lane: plan(arguments.seed, lane, arguments.only) for lane in Lane}
        self.piped: bool = arguments.log == "pipe" if arguments.log else random.Random(f"{arguments.seed} log").random() < 0.5
        self.failures = Failures(arguments.failures)
        self.done: Counter[str] = Counter()
        self.died = False
        self.served = 0
        self.longest = 0.0

    def over(self) -> bool:
        """Say whether no further attack is to begin."""
        return time.monotonic() > self.until or self.failures.many()

    def lane(self, lane: Lane, scene: Scene) -> None:
        """Do one attack after the other."""
        while not self.over() and not scene.dead():
            step = next(self.steps[lane], None)
            if step is None:
                return
            name = f"{lane} {step.number} {step.attack.name}"
            began = time.monotonic()
            try:
                with self.failures.during(name):
                    step.attack.act(scene, step.random)
            except Exception as error:
                if not scene.dead():
                    text = str(error) if isinstance(error, AssertionError) else "".join(traceback.format_exception(error)[-3:])
                    self.failures.add(f"{step.attack.name}: {text}")
            if lane is Lane.WIRE:
                # Only here: in the other lane what a session needs to go on might be killed with it.
                scene.sweep()
            self.done[step.attack.kind] += 1
            print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)

    def with_daemon(self, folder: Path) -> None:
        """Attack one daemon until the time is over, or until it dies."""
        before = children_of(os.getpid())
        scene = Scene(folder, piped=self.piped)
        scene.start()
        crowd = Crowd(scene.connect, self.rate, self.failures.add)
        verdict = Verdict(scene, self.failures, crowd.pids)
        crowd.start()
        lanes = [threading.Thread(target=self.lane, args=(lane, scene)) for lane in Lane]
        for thread in lanes:
            thread.start()
        for thread in lanes:
            thread.join()
        self.finish(scene, crowd, verdict)
        if self.died:
            take_orphans(before)
        else:
            verdict.left_behind()

    def finish(self, scene: Scene, crowd: Crowd, verdict: Verdict) -> None:
        """Let the crowd go, see that the daemon is as it was, and end it among guests; or say how it has died."""
        self.died = scene.dead()
        if self.died:
            verdict.death()
        crowd.stop()
        self.served += crowd.served
        self.longest = max(self.longest, crowd.longest)
        if not self.died:
            verdict.final()
            with self.failures.during("the end"):
                for text in scene.ended_among_guests(random.Random(f"{self.seed} end")):
                    self.failures.add(text)
        verdict.close()
        scene.sweep()
        for text in scene.close():
            self.failures.add(f"at the end: {text}")
        scene.sweep()

    def verdict(self) -> int:
        """Say how it went, and return the exit status."""
        attacks = ", ".join(f"{count} of kind {kind}" for kind, count in sorted(self.done.items()))
        print(f"{sum(self.done.values())} attacks ({attacks}); {self.served} honest sessions, the longest {self.longest:.1f} s")
        for kind, (text, when) in list(self.failures.found.items())[:SHOWN]:
            print(f"{self.failures.times[kind]:5} times {text[:1000]}\n        {when}")
        return int(bool(self.failures.found) or not self.served)


def show_plan(run: Run, seed: int, only: list[str]) -> None:
    """Print the first round of each lane; the rounds after it are shuffled by the same seed."""
    log = "pipe" if run.piped else "file"
    print(f"seed {seed}, the log is a {log}; the first round of each lane, in this order:")
    for lane in Lane:
        count = sum(attack.lane is lane for attack in ATTACKS if not only or attack.name in only)
        steps = plan(seed, lane, only)
        print(f"{lane}: " + " ".join(f"{step.number}:{step.attack.name}" for step, _ in zip(steps, range(count), strict=False)), flush=True)


def main() -> int:
    """Run it and return the exit status: 0 nothing went wrong, 1 something did, 2 it cannot be run here."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.hostile", description=campaign.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--rate", type=float, default=50, help="honest sessions a second")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=[attack.name for attack in ATTACKS])
    parser.add_argument("--log", choices=["file", "pipe"], help="what the daemon logs to; by default the seed says")
    parser.add_argument("--failures", type=int, default=FAILURES_MAX, help="end after so many kinds of failures")
    parser.add_argument("--list", action="store_true", help="print the attacks and end")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{attack.kind:9} {attack.name}" for attack in ATTACKS))
        return 0
    if os.geteuid() != 0:
        print("this campaign is for root: it gives its handlers to another user", file=sys.stderr)
        return 2
    # Whatever a daemon leaves behind becomes a child of this process, and is found.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    run = Run(arguments)
    show_plan(run, arguments.seed, arguments.only)
    for _ in range(DEATHS_MAX):
        with tempfile.TemporaryDirectory(prefix="poold-hostile-", ignore_cleanup_errors=True) as folder:
            run.with_daemon(Path(folder))
        if run.over():
            break
    status = run.verdict()
    if status:
        options = ["--seed", str(arguments.seed), "--minutes", f"{arguments.minutes:g}", "--rate", f"{arguments.rate:g}"]
        options += ["--log", arguments.log] if arguments.log else []
        options += ["--only", *arguments.only] if arguments.only else []
        print(f"again: {shlex.join([sys.executable, '-m', 'tests.soak.hostile', *options])}")
    return status


if __name__ == "__main__":
    sys.exit(main())

"""poold's master seen from outside: memory, descriptors, wakeups, and how long it takes to be asked."""

import math
import os
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.bench.plan import Plan
from tests.bench.results import MasterLook
from tests.bench.server import Server
from tests.laws import Metrics

ASK_SECONDS = 60.0
# What a start or the last session left to be done, such as a spare to make, is no idling.
CALM_SECONDS = 1.0


def look(server: Server, *, sessions: int, round: int, plan: Plan) -> MasterLook:
    """Return what there is to see. Wakeups are counted first, while nobody asks: a scrape is a wakeup too."""
    place = server.place
    time.sleep(CALM_SECONDS)  # what is going on ends
    wakeups = voluntary_switches(server.pid)
    time.sleep(plan.idle)  # the figure is of this time
    wakeups = voluntary_switches(server.pid) - wakeups

    def command(*words: str) -> Callable[[], object]:
        line = [place.python, "-m", "poold", *words, "--socket", str(place.control)]
        # Without a timeout: with one, subprocess looks for the end twenty times a second only.
        return lambda: subprocess.run(line, stdout=subprocess.DEVNULL, cwd=place.folder, check=True)

    resident, private = memory(server.pid)
    descriptors = len(os.listdir(f"/proc/{server.pid}/fd"))
    metrics = Metrics.parse(scrape(place.metrics_port))
    turns = metrics["poold_master_loop_seconds_count"]
    return MasterLook(
        round=round,
        sessions=sessions,
        resident=resident,
        private=private,
        descriptors=descriptors,
        spares=int(metrics.total("poold_children", kind="worker", state="spare")),
        wakeups_per_second=wakeups / plan.idle,
        scrape=timed(lambda: scrape(place.metrics_port), plan.asks),
        status=timed(command("status"), plan.asks),
        ps=timed(command("ps"), plan.asks),
        loop_turns=turns,
        loop_mean=metrics["poold_master_loop_seconds_sum"] / turns,
        loop_longest=longest_turn(metrics),
    )


def voluntary_switches(pid: int) -> int:
    """Return how often a process has waited for something; for one that only ever waits in its loop, its wakeups."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    raise AssertionError("/proc/PID/status has voluntary_ctxt_switches")


def memory(pid: int) -> tuple[int, int]:
    """Return the resident and the private memory of a process, in bytes."""
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    sizes = {words[0]: int(words[1]) * 1024 for words in lines}
    return sizes["Rss:"], sizes["Private_Clean:"] + sizes["Private_Dirty:"]


def scrape(port: int) -> str:
    """Return what Prometheus would get."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=ASK_SECONDS) as answer:
        return str(answer.read(), "utf-8")


def timed(act: Callable[[], object], times: int) -> float:
    """Return the median time that something takes, in seconds."""
    taken = []
    for _ in range(times):
        begun = time.monotonic()
        act()
        taken.append(time.monotonic() - begun)
    return statistics.median(taken)


def longest_turn(metrics: Metrics) -> float | None:
    """Return the least bound below which every turn of the master's loop was; None when the buckets do not reach so far."""
    prefix = "poold_master_loop_seconds_bucket{le="
    buckets = {float(name.removeprefix(prefix).rstrip("}")): value for name, value in metrics.items() if name.startswith(prefix)}
    total = buckets.pop(math.inf)
    return min((bound for bound, value in buckets.items() if value == total), default=None)

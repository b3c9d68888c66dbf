"""What holds in every scrape, and who keeps looking whether it does."""

import http.client
import threading
from collections.abc import Callable
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from tests.waiting import DEADLINE


class Metrics(dict[str, float]):
    """One scrape: sample name with its labels, as exposed, to value."""

    @classmethod
    def parse(cls, text: str) -> Self:
        found = cls()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found

    def total(self, name: str, **labels: str) -> float:
        """Sum the samples of a name whose labels include these."""
        wanted = [f"{key}={value}" for key, value in labels.items()]
        return sum(
            value
            for sample, value in self.items()
            if sample.partition("{")[0] == name and all(part in sample.partition("{")[2].rstrip("}").split(",") for part in wanted)
        )


def broken_laws(now: Metrics, before: Metrics | None) -> list[str]:
    """Return what a scrape violates of the laws that hold in every scrape."""
    broken = []
    accepted, refused = now.total("poold_connections_accepted_total"), now.total("poold_connections_refused_total")
    active, ended = now["poold_sessions_active"], now.total("poold_sessions_ended_total")
    if accepted != refused + active + ended:
        broken.append(f"accepted {accepted} != refused {refused} + active {active} + ended {ended}")
    for kind in ("worker", "mold", "exporter", "trial", "logger"):
        spawned = now.total("poold_children_spawned_total", kind=kind)
        living, reaped = now.total("poold_children", kind=kind), now.total("poold_children_reaped_total", kind=kind)
        if spawned != living + reaped:
            broken.append(f"{kind}: spawned {spawned} != living {living} + reaped {reaped}")
    workers, cap = now.total("poold_children", kind="worker"), now["poold_children_max"]
    if workers > cap and (before is None or workers > before.total("poold_children", kind="worker")):
        broken.append(f"{workers} workers over a cap of {cap}")
    if not 0 <= now["poold_children_active"] <= active:
        broken.append(f"children_active {now['poold_children_active']} of {active} sessions")
    if now.total("poold_children_failed_total") > now.total("poold_children_reaped_total"):
        broken.append("more failed than reaped")
    return broken + fallen(now, before or Metrics())


def fallen(now: Metrics, before: Metrics) -> list[str]:
    """Return the counters that are less than they were."""
    return [
        f"{sample} fell from {value} to {now.get(sample)}"
        for sample, value in before.items()
        if sample.partition("{")[0].endswith(("_total", "_count", "_bucket", "_sum")) and now.get(sample, 0.0) < value
    ]


class LawKeeper:
    """Scrapes all the time in a thread, and remembers every law it saw broken."""

    def __init__(self, fetch: Callable[[], Metrics], per_second: float) -> None:
        self._fetch = fetch
        self._pause = 1 / per_second
        self._stop = threading.Event()
        self.scrapes = 0
        self.broken: list[str] = []
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        before = None
        while not self._stop.wait(self._pause):
            try:
                now = self._fetch()
            except (OSError, http.client.HTTPException):
                # The daemon is gone, or its exporter is being replaced: the test itself says whether it may be.
                continue
            self.scrapes += 1
            self.broken += broken_laws(now, before)
            before = now

    def close(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE)

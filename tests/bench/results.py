"""What was measured, as plain records that JSON can hold. Durations are seconds, memory is bytes."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ClosedRun:
    """Sessions one after the other in `concurrency` places. `generator_share` is the generator's use of its core, 0 to 1."""

    peer: str
    round: int
    concurrency: int
    sessions_per_second: float
    p50: float
    p99: float
    max: float
    failed: int
    generator_share: float


@dataclass(frozen=True, slots=True)
class OpenRun:
    """Sessions that fell due `rate` times a second. `quantiles` are the latencies at `QUANTILES`."""

    peer: str
    round: int
    rate: int
    ended: int
    failed: int
    p50: float
    p99: float
    max: float
    quantiles: list[float]


@dataclass(frozen=True, slots=True)
class HeldRun:
    """Sessions opened one after the other and held. `opening` has the median time to open one, for each hundredth part of them."""

    peer: str
    round: int
    sessions: int
    seconds: float
    bytes_each: float
    first_hundred: float
    last_hundred: float
    opening: list[float]


@dataclass(frozen=True, slots=True)
class MasterLook:
    """poold's master, seen from outside while there are so many `sessions`.

    Of the turns of its loop since its start, `loop_longest` is the histogram's bound below which all were; None beyond the buckets.
    """

    round: int
    sessions: int
    resident: int
    private: int
    descriptors: int
    spares: int
    wakeups_per_second: float
    scrape: float
    status: float
    ps: float
    loop_turns: float
    loop_mean: float
    loop_longest: float | None


@dataclass(frozen=True, slots=True)
class ReloadRun:
    """One reload under an open loop: `longest` is the longest any client waited, `lost` how many were not served.

    `machine_pause` is the longest that the machine itself stood still meanwhile; None where that cannot be measured.
    """

    number: int
    applied: bool
    p50: float
    longest: float
    lost: int
    machine_pause: float | None = None


@dataclass(frozen=True, slots=True)
class StartRun:
    """From the start of the process to READY=1; `cores` is how many it had."""

    cores: int
    seconds: float


@dataclass(slots=True)
class Results:
    """Everything of one run. `peers` says what each server was, `skipped` why one is missing, `troubles` what went wrong."""

    environment: dict[str, str] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    closed: list[ClosedRun] = field(default_factory=list)
    open: list[OpenRun] = field(default_factory=list)
    held: list[HeldRun] = field(default_factory=list)
    master: list[MasterLook] = field(default_factory=list)
    reloads: list[ReloadRun] = field(default_factory=list)
    starts: list[StartRun] = field(default_factory=list)

    def note_failures(self, what: str, failed: int, failures: list[str]) -> None:
        """Keep what became of sessions that failed, if any did."""
        if failed:
            self.troubles.append(f"{what}: {failed} failed ({'; '.join(sorted(set(failures)))})")

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, file: Path) -> Self:
        """Return what `write` wrote."""
        records: dict[str, Any] = {
            "closed": ClosedRun,
            "open": OpenRun,
            "held": HeldRun,
            "master": MasterLook,
            "reloads": ReloadRun,
            "starts": StartRun,
        }
        tables: dict[str, Any] = json.loads(file.read_text())
        for name, record in records.items():
            tables[name] = [record(**row) for row in tables[name]]
        return cls(**tables)

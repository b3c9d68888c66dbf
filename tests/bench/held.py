"""Sessions that are held: what each costs in memory, and what it costs to open the one after thousands."""

import statistics
from contextlib import closing

from tests.bench.load import Generator
from tests.bench.master import look
from tests.bench.memory import Ballast, settled_available_bytes
from tests.bench.peers import POOLD
from tests.bench.plan import Plan
from tests.bench.results import HeldRun, Results
from tests.bench.server import Server

# More than any of the servers needs for a session.
BALLAST_EACH = 1_600_000
HUNDRED = 100
PARTS = 100


def hold(server: Server, generator: Generator, *, sessions: int, round: int, plan: Plan, results: Results) -> None:
    """Hold so many sessions of a fresh server; adds to `results`. Raises LoadError.

    poold's master is looked at before and after the greatest number.
    """
    peer = server.peer
    looks = peer.name == POOLD and sessions == max(plan.held_sessions)
    if looks:
        results.master.append(look(server, sessions=0, round=round, plan=plan))
    before = settled_available_bytes()
    with (
        closing(Ballast(sessions * BALLAST_EACH)) as ballast,
        generator.hold(server.place.port, peer.service, sessions=sessions, meanwhile=ballast.give) as holding,
    ):
        ballast.close()
        bytes_each = (before - settled_available_bytes()) / sessions
        if looks:
            results.master.append(look(server, sessions=sessions, round=round, plan=plan))
        opening = holding.result()
    latencies = opening.latencies
    results.held.append(
        HeldRun(
            peer=peer.name,
            round=round,
            sessions=sessions,
            seconds=opening.seconds,
            bytes_each=bytes_each,
            first_hundred=statistics.median(latencies[:HUNDRED]),
            last_hundred=statistics.median(latencies[-HUNDRED:]),
            opening=[statistics.median(part) for part in parts_of(latencies)],
        )
    )


def parts_of(values: list[float]) -> list[list[float]]:
    """Return a list in a hundred parts of the same length, in order; fewer where there are fewer values."""
    size = max(1, len(values) // PARTS)
    return [values[at : at + size] for at in range(0, len(values) - size + 1, size)]

"""The closed and the open loops: every server has its turn in each round, ABCABC…, and in its turn all of its measurements."""

import time

from tests.bench.load import Generator, Load
from tests.bench.plan import Plan
from tests.bench.results import ClosedRun, OpenRun, Results
from tests.bench.server import Server

WARM_CONCURRENCY = 8
# An open loop above what the closed loop reached only measures how long the queue grew: it is not tried.
HEADROOM = 1.1


def take_turn(server: Server, generator: Generator, *, round: int, plan: Plan, results: Results) -> None:
    """Measure one server that is there; adds to `results`. Raises LoadError."""
    peer, port, service = server.peer, server.place.port, server.peer.service
    generator.closed(port, service, seconds=plan.warm, concurrency=WARM_CONCURRENCY)
    reached = 0.0
    for concurrency in plan.closed_levels:
        time.sleep(plan.rest)  # the server finishes what its last clients left to be done
        load = generator.closed(port, service, seconds=plan.closed_seconds, concurrency=concurrency)
        run = closed_run(peer.name, round, concurrency, load)
        reached = max(reached, run.sessions_per_second)
        results.closed.append(run)
        results.note_failures(f"{peer.name}, closed loop of {concurrency}", load.failed, load.failures)
    for rate in plan.open_rates:
        if rate * HEADROOM > reached:
            continue
        time.sleep(plan.rest)  # the server finishes what its last clients left to be done
        with generator.open(port, service, seconds=plan.open_seconds, rate=rate) as running:
            load = running.result()
        results.open.append(open_run(peer.name, round, rate, load))
        results.note_failures(f"{peer.name}, open loop of {rate}/s", load.failed, load.failures)


def closed_run(peer: str, round: int, concurrency: int, load: Load) -> ClosedRun:
    """Return the record of a closed loop."""
    p50, p99, longest = load.quantiles((0.5, 0.99, 1.0))
    return ClosedRun(
        peer=peer,
        round=round,
        concurrency=concurrency,
        sessions_per_second=load.ended / load.seconds,
        p50=p50,
        p99=p99,
        max=longest,
        failed=load.failed,
        generator_share=load.cpu_seconds / load.seconds,
    )


def open_run(peer: str, round: int, rate: int, load: Load) -> OpenRun:
    """Return the record of an open loop."""
    p50, p99, longest = load.quantiles((0.5, 0.99, 1.0))
    return OpenRun(
        peer=peer,
        round=round,
        rate=rate,
        ended=load.ended,
        failed=load.failed,
        p50=p50,
        p99=p99,
        max=longest,
        quantiles=load.quantiles(),
    )

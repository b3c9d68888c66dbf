"""poold's two moments that somebody may notice: a reload under load, and a start."""

import os
import signal
import time

from tests.bench.load import Generator
from tests.bench.master import scrape
from tests.bench.pauses import Pauses
from tests.bench.results import ReloadRun, Results, StartRun
from tests.bench.server import START_SECONDS, Server, ServerError
from tests.laws import Metrics
from tests.support import NotifySocket

RELOAD_RATE = 200
RELOAD_AFTER = 0.5
# A reload takes well under a second; the rest is for what it leaves to be done.
RELOAD_SECONDS = 2.5


def reload(server: Server, generator: Generator, *, number: int, pauses: Pauses, results: Results) -> None:
    """Send poold HUP in the middle of an open loop; adds to `results`."""
    place, peer = server.place, server.peer
    before = applied_reloads(place.metrics_port)
    with pauses, generator.open(place.port, peer.service, seconds=RELOAD_SECONDS, rate=RELOAD_RATE) as running:
        time.sleep(RELOAD_AFTER)  # the middle of the load
        os.kill(server.pid, signal.SIGHUP)
        load = running.result()
    p50, longest = load.quantiles((0.5, 1.0))
    applied = applied_reloads(place.metrics_port) == before + 1
    results.reloads.append(
        ReloadRun(number=number, applied=applied, p50=p50, longest=longest, lost=load.failed, machine_pause=pauses.longest)
    )
    results.note_failures(f"{peer.name}, reload {number}", load.failed, load.failures)


def applied_reloads(metrics_port: int) -> float:
    """Return how many reloads were applied so far."""
    return Metrics.parse(scrape(metrics_port)).total("poold_reloads_total", result="applied")


def start(server: Server, cores: tuple[int, ...]) -> StartRun:
    """Start poold on these cores, wait until it tells its service manager that it is ready, and end it. Raises ServerError."""
    server.cores = cores
    notify = NotifySocket(server.place.folder / "notify.sock")
    server.environ["NOTIFY_SOCKET"] = str(notify.path)
    notify.socket.settimeout(START_SECONDS)
    try:
        begun = time.monotonic()
        with server:
            while b"READY=1" not in notify.socket.recv(65536).splitlines():
                pass
            return StartRun(cores=len(cores), seconds=time.monotonic() - begun)
    except TimeoutError as error:
        raise ServerError(f"{server.peer.name} was not ready in {START_SECONDS:.0f} s") from error
    finally:
        notify.socket.close()

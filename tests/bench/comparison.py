"""One run of the comparison: which step follows which, and what is kept when one fails."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product

from tqdm import tqdm

from tests.bench import held, loops, moments
from tests.bench.load import Generator, LoadError
from tests.bench.pauses import Pauses
from tests.bench.peer import Peer
from tests.bench.peers import POOLD
from tests.bench.plan import Plan
from tests.bench.results import Results
from tests.bench.server import STOP_SECONDS, Ground, Server, ServerError

PARTS = ("loops", "held", "moments")
LOOP_SESSIONS = 1024
# Beyond the sessions that are held: spares, and the client that finds out whether the server serves.
SPARE_SESSIONS = 240
SAID_LINES = 5

Step = tuple[str, Callable[[], None]]


class Comparison:
    """What is measured, of which servers, into which results."""

    def __init__(self, plan: Plan, peers: Sequence[Peer], ground: Ground, results: Results) -> None:
        """Begin nothing yet."""
        self._plan = plan
        self._peers = peers
        self._ground = ground
        self._results = results
        self._generator = Generator(programs=ground.programs, cores=ground.cores, patience=plan.patience)
        self._parts = dict(zip(PARTS, (self._loops, self._holding, self._moments), strict=True))

    def run(self, parts: Sequence[str]) -> None:
        """Take every step of these parts, a few of PARTS. One that fails is noted and the next is taken: nothing measured is lost."""
        steps = [step for part, make in self._parts.items() if part in parts for step in make()]
        with tqdm(steps, unit="step", dynamic_ncols=True) as bar:
            for name, act in bar:
                bar.set_description_str(f"{name:<36}")
                try:
                    act()
                except (LoadError, ServerError) as error:
                    self._results.troubles.append(f"{name}: {error}")

    def _loops(self) -> Iterator[Step]:
        for round, peer in product(range(self._plan.rounds), self._peers):
            yield f"{peer.name}, round {round + 1}", partial(self._turn, peer, round)

    def _holding(self) -> Iterator[Step]:
        holders = [peer for peer in self._peers if peer.holds]
        for round, sessions, peer in product(range(self._plan.held_rounds), self._plan.held_sessions, holders):
            yield f"{peer.name}, {sessions:,} held", partial(self._hold, peer, round, sessions)

    def _moments(self) -> Iterator[Step]:
        for peer in self._peers:
            if peer.name == POOLD:
                yield "reloads", partial(self._reload, peer)
                yield "starts", partial(self._start, peer)

    @contextmanager
    def _serving(self, peer: Peer, sessions: int) -> Iterator[Server]:
        server = Server(peer, self._ground, sessions=sessions)
        try:
            with server:
                yield server.wait()
        finally:
            if server.killed:
                self._results.troubles.append(f"{peer.name} was killed: it had not ended {STOP_SECONDS:.0f} s after TERM")
            # poold was told to write warnings only; what the others write is their business.
            if peer.module == POOLD:
                self._results.troubles += [f"{peer.name} said: {line}" for line in server.said[:SAID_LINES]]

    def _turn(self, peer: Peer, round: int) -> None:
        with self._serving(peer, LOOP_SESSIONS) as server:
            loops.take_turn(server, self._generator, round=round, plan=self._plan, results=self._results)

    def _hold(self, peer: Peer, round: int, sessions: int) -> None:
        with self._serving(peer, sessions + SPARE_SESSIONS) as server:
            held.hold(server, self._generator, sessions=sessions, round=round, plan=self._plan, results=self._results)

    def _reload(self, peer: Peer) -> None:
        with self._serving(peer, LOOP_SESSIONS) as server:
            for number in range(self._plan.reloads):
                pauses = Pauses(programs=self._ground.programs, cores=self._ground.cores)
                moments.reload(server, self._generator, number=number + 1, pauses=pauses, results=self._results)

    def _start(self, peer: Peer) -> None:
        cores = self._ground.cores
        for chosen in ((cores.server,), (cores.server, cores.load)):
            for _ in range(self._plan.starts):
                server = Server(peer, self._ground, sessions=LOOP_SESSIONS)
                self._results.starts.append(moments.start(server, chosen))

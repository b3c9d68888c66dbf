"""What there is to see: the answer to each path, from the counters and from the master's word.

/metrics   everything; from what was published last where the master gives no word: a master that is busy or stopped is measured too
/healthz   200 while the master's loop turns, else 503
/readyz    200 while a newcomer would be served, else 503, and why
"""

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, exposition

from poold import scoreboard as board
from poold.exporter.answer import Answer, answer, told
from poold.exporter.collector import PooldCollector
from poold.exporter.formats import Format, negotiated
from poold.exporter.lifeline import Lifeline
from poold.exporter.request import Request
from poold.scoreboard import CountersView

# How long a scrape waits for the master's word, and a health check for its pulse.
FRESH_SECONDS = 0.25
HEALTH_SECONDS = 2.0
# A moment without room is normal; so many seconds of it are not.
NOT_READY_AFTER = 5.0
METRICS = "/metrics"
STUCK = "the master's loop does not turn"


def hindrance(cells: Sequence[int], now: float) -> str:
    """Say why a newcomer would not be served at `now` (CLOCK_MONOTONIC), "" when one would."""
    if cells[board.DRAINING]:
        return "draining"
    since = cells[board.NOT_ACCEPTING_SINCE] / 1e6
    if not cells[board.ACCEPTING] and (not since or now - since >= NOT_READY_AFTER):
        return "not accepting"
    if cells[board.BARREN_FROM] and cells[board.BARREN_FROM] / 1e6 <= now:
        return "no worker can be born"
    return ""


class Site:
    """Answers requests."""

    def __init__(self, view: CountersView, lifeline: Lifeline) -> None:
        self._view = view
        self._lifeline = lifeline
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(PooldCollector(view))
        self._encoders = {format: exposition.choose_encoder(format.value) for format in Format}

    async def answer(self, request: Request) -> Answer:
        """Return the answer to a request, after at most `HEALTH_SECONDS` of waiting for the master."""
        if request.path == METRICS:
            return await self._metrics(negotiated(request.accept))
        match request.path:
            case "/healthz":
                turns = await self._lifeline.ask().answered(HEALTH_SECONDS)
                return told(200, "ok") if turns else told(503, STUCK)
            case "/readyz":
                turns = await self._lifeline.ask().answered(HEALTH_SECONDS)
                problem = hindrance(self._view.read(), time.monotonic()) if turns else STUCK
                return told(503, problem) if problem else told(200, "ok")
        return told(404, "there are /metrics, /healthz and /readyz")

    async def _metrics(self, format: Format) -> Answer:
        """Return the exposition, made once for all who have asked in this moment: it takes some milliseconds of everybody's time."""
        moment = self._lifeline.ask()
        if not await moment.answered(FRESH_SECONDS):
            # Who asks while the master is silent may have to wait for long together: for some of them it would be older than their last.
            return self._made(format)
        if format not in moment.made:
            moment.made[format] = self._made(format)
        return moment.made[format]

    def _made(self, format: Format) -> Answer:
        encode, content_type = self._encoders[format]
        return answer(200, encode(self._registry), content_type)

"""Answers each path, from the counters and from the master's answer on the lifeline.

/metrics   every metric; as published last where the master does not answer in time
/healthz   200 while the master's loop turns, else 503
/readyz    200 while a new client would be served, else 503 and the reason
"""

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, exposition

from poold.exporter.answer import Answer, http_answer, text_answer
from poold.exporter.collector import PooldCollector
from poold.exporter.formats import Format, negotiated
from poold.exporter.lifeline import Lifeline
from poold.exporter.request import Request
from poold.scoreboard import ACCEPTING, BARREN_FROM, DRAINING, NOT_ACCEPTING_SINCE, CountersView

# Seconds that a scrape waits for the master's answer, and that a health check does.
FRESH_SECONDS = 0.25
HEALTH_SECONDS = 2.0
# Seconds after which a master that does not accept is not ready. A full pool pauses for moments.
NOT_READY_AFTER = 5.0
METRICS = "/metrics"
STUCK = "the master's loop does not turn"


def hindrance(cells: Sequence[int], now: float) -> str:
    """Return why a new client would not be served, "" where a client would be.

    `now` is CLOCK_MONOTONIC.
    """
    if cells[DRAINING]:
        return "draining"
    since = cells[NOT_ACCEPTING_SINCE] / 1e6
    if not cells[ACCEPTING] and (not since or now - since >= NOT_READY_AFTER):
        return "not accepting"
    if cells[BARREN_FROM] and cells[BARREN_FROM] / 1e6 <= now:
        return "no worker can be born"
    return ""


class Site:
    """Answers requests, of which each asks for one path."""

    def __init__(self, view: CountersView, lifeline: Lifeline) -> None:
        self._view = view
        self._lifeline = lifeline
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(PooldCollector(view))
        self._encoders = {format: exposition.choose_encoder(format.value) for format in Format}

    async def answer(self, request: Request) -> Answer:
        """Return the answer to a request. The master has at most `HEALTH_SECONDS` to answer."""
        if request.path == METRICS:
            return await self._metrics(negotiated(request.accept))
        match request.path:
            case "/healthz":
                turns = await self._lifeline.ask().answered(HEALTH_SECONDS)
                return text_answer(200, "ok") if turns else text_answer(503, STUCK)
            case "/readyz":
                turns = await self._lifeline.ask().answered(HEALTH_SECONDS)
                problem = hindrance(self._view.read(), time.monotonic()) if turns else STUCK
                return text_answer(503, problem) if problem else text_answer(200, "ok")
        return text_answer(404, "there are /metrics, /healthz and /readyz")

    async def _metrics(self, format: Format) -> Answer:
        """Return the exposition.

        The scrapes of one inquiry share one, because the loop stands still while one is made.
        """
        inquiry = self._lifeline.ask()
        if not await inquiry.answered(FRESH_SECONDS):
            # Scrapes share an inquiry for as long as the master is silent, and a scraper may ask
            # again meanwhile. A shared exposition would then be older than the scraper's last.
            return self._exposition(format)
        if format not in inquiry.expositions:
            inquiry.expositions[format] = self._exposition(format)
        return inquiry.expositions[format]

    def _exposition(self, format: Format) -> Answer:
        encode, content_type = self._encoders[format]
        return http_answer(200, encode(self._registry), content_type)

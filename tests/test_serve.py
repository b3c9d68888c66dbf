"""A connection's whole way: accepted, handed over, served, reaped, counted."""

import json
import os

from tests.procfs import title
from tests.support import Poold


def test_serves_and_counts(poold: Poold) -> None:
    """Two clients are served by two processes at once, and every count knows."""
    daemon = poold().start()
    with daemon.connect() as one, daemon.connect() as two:
        pids = {one.ask("pid"), two.ask("pid")}
        assert len(pids) == 2
        assert str(daemon.master) not in pids
        daemon.metric("poold_children_active", 2)
        assert one.finish() == b""
        assert two.ask("echo still here") == "still here"
        daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    daemon.metric("poold_sessions_ended_total", 2, cause="ok")
    metrics = daemon.metrics()
    assert metrics.total("poold_connections_accepted_total", listener="main") == 2
    assert metrics["poold_sessions_active"] == 0
    assert metrics.total("poold_children_failed_total") == 0


def test_facts_of_a_worker(poold: Poold) -> None:
    """A serving worker is the master's own child, leads a session, and has 0, 1, 2, its connection and its activity page, nothing else."""
    daemon = poold().start()
    with daemon.connect() as client:
        facts = json.loads(client.ask("facts"))
        # One descriptor is that of the listing itself.
        fds = os.listdir(f"/proc/{facts['pid']}/fd")
        assert len(fds) == 5
        assert facts["ppid"] == daemon.master
        assert facts["sid"] == facts["pid"]
        assert facts["cwd"] == "/"
        assert facts["blocking"] is True
        assert title(facts["pid"]).startswith("poold: cases 127.0.0.1:")

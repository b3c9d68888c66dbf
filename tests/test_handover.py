"""Births and hand-overs at bad moments: nobody is served twice, nobody is lost, nobody speaks for another."""

import os
import re
import shutil
import signal
import sys
from pathlib import Path

import poold as package
from tests.childkit import spares_of
from tests.procfs import state
from tests.support import Poold
from tests.waiting import eventually


def test_what_a_dead_worker_said_is_heard(poold: Poold) -> None:
    """A session that was acknowledged, served and over before the master looked is served once and ends as ok."""
    daemon = poold(options={"server.handler": "poold.handlers.daytime:serve", "pool.min_spare": 1, "pool.max_spare": 1}).start(laws=False)
    [spare] = spares_of(daemon, 1)
    os.kill(spare, signal.SIGSTOP)
    with daemon.connect() as client:
        daemon.metric("poold_children", 1, kind="worker", state="serving")
        os.kill(daemon.master, signal.SIGSTOP)
        os.kill(spare, signal.SIGCONT)
        # The date has come; the end has not, because the master still holds its copy.
        assert client.line()
        eventually(lambda: state(spare) == "Z", "the worker ends while the master is stopped")
        os.kill(daemon.master, signal.SIGCONT)
        assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    assert daemon.metrics().total("poold_sessions_ended_total") == 1
    assert daemon.event("session_ended")["pid"] == spare


def test_nobody_speaks_for_a_worker(poold: Poold) -> None:
    """A process that is not the master's child is not taken for a worker; the client is served by a real one."""
    daemon = poold(options={"server.handler": "impostor:serve"}).start()
    assert "no child of ours" in daemon.event("protocol_error")["error"]
    with daemon.connect() as client:
        assert client.ask("the real one") == "the real one"
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_worker_that_dies_first_thing(poold: Poold) -> None:
    """Workers that die before they can say so are found, counted once as stillborn, and slow births down with one line."""
    daemon = poold(options={"pool.min_spare": 1, "pool.preload": False, "server.handler": "stillborn:serve"})
    daemon.start(wait=False)
    eventually(lambda: len(daemon.events("child_failed", reason="stillborn")) >= 4)
    daemon.metric("poold_unknown_children_reaped_total", 0)
    metrics = daemon.metrics()
    failed = metrics.total("poold_children_failed_total", reason="stillborn")
    assert failed == metrics.total("poold_children_reaped_total", kind="worker") >= 4
    assert len(daemon.events("spawn_failed")) == 1
    assert not daemon.notify.poll()
    daemon.kill(signal.SIGTERM)
    assert daemon.wait() == 0


def test_other_version_on_disk(poold: Poold, tmp_path: Path) -> None:
    """A mold that would run another poold than its master's is refused, and the log says what to do; who is served goes on."""
    copy = tmp_path / "copy"
    shutil.copytree(Path(package.__file__).parent, copy / "poold", ignore=shutil.ignore_patterns("__pycache__"))
    environ = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    daemon = poold(options={"pool.min_spare": 2}).start(environ=environ)
    assert str(copy) in Path(f"/proc/{daemon.master}/environ").read_text()
    spares_of(daemon, 2)
    with daemon.connect() as client:
        client.ask("pid")
        init = copy / "poold" / "__init__.py"
        init.write_text(re.sub(r'__version__ = ".*"', '__version__ = "99.0"', init.read_text()))
        [mold] = [row["pid"] for row in daemon.children("mold")]
        os.kill(mold, signal.SIGKILL)
        eventually(lambda: daemon.metrics()["poold_mold_starts_total"] >= 3)
        assert "99.0 is installed now" in str(daemon.events("mold_failed"))
        assert client.ask("echo as before") == "as before"
        with daemon.connect() as other:
            assert other.ask("echo by a spare") == "by a spare"
    assert sys.version_info >= (3, 11)

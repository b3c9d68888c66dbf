"""Molds that are spoilt, that lie, or that no workers come of: another one takes their place, and who lives does not notice."""

import contextlib
import os
import resource
import signal
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poold import __version__
from poold.channel import ANSWER_HEAD, ORDER_RESULT, MoldReport, MoldWord, pack_mold_report
from poold.errors import ProtocolError
from poold.master.children.table import Child
from poold.master.pool.mold import FAILURES_MAX, FAILURES_SECONDS, Mold, Streak
from poold.words import Kind
from tests.childkit import mold_of, titled
from tests.faultkit import pids_limit
from tests.needs import needs_root
from tests.procfs import gone
from tests.pythonkit import shared_python
from tests.support import Daemon, Poold
from tests.waiting import eventually

COLD = {"pool.min_spare": 0, "pool.max_spare": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where molds find what they are to do wrong; for everybody."""
    place = tmp_path / "orders"
    place.mkdir()
    return place


def vandal(folder: Path, **options: Any) -> dict[str, Any]:
    """Return settings with a handler that may spoil its mold."""
    return {"server.handler": "vandal:serve", "server.environment": {"FOLDER": str(folder)}, **COLD, **options}


def moody(folder: Path, **options: Any) -> dict[str, Any]:
    """Return settings with a handler whose import does as the file `mood` says."""
    return {"server.handler": "moody:serve", "server.environment": {"MOOD": str(folder / "mood")}, **COLD, **options}


def starve(pid: int) -> tuple[int, int]:
    """Leave a process no descriptor to open, as a session of the same user could; return its limits as they were."""
    return resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))


def served(daemon: Daemon, words: str = "echo hello", answer: str = "hello") -> None:
    """Check that a newcomer is served."""
    with daemon.connect() as client:
        assert client.ask(words) == answer


# No workers come of it.


@needs_root
@pytest.mark.parametrize(("limit", "error"), [("NOFILE 3", "EMFILE"), ("NPROC 0", "EAGAIN")])
def test_session_that_limits_its_mold(poold: Poold, folder: Path, limit: str, error: str) -> None:
    """A session takes from its mold what a clone needs: who comes then is served by a substitute, and nobody has failed."""
    with shared_python() as python:
        daemon = poold(options=vandal(folder, **{"server.user": "nobody"}))
        daemon.python = python
        daemon.start()
        mold = mold_of(daemon)
        with daemon.connect() as bystander:
            assert bystander.ask(f"limit {mold} {limit}") == "ok"
            served(daemon)
            assert bystander.ask("echo still here") == "still here"
        eventually(lambda: gone(mold), "the old mold has left")
        assert daemon.event("mold_failing", pid=mold)["failures"] >= FAILURES_MAX
        assert daemon.event("mold_replaced")["by"] == mold_of(daemon)
        metrics = daemon.metrics()
        assert metrics.total("poold_mold_starts_total") == 2
        assert metrics.total("poold_children_failed_total") == 0
        assert metrics.total("poold_fork_failures_total", errno=error) >= FAILURES_MAX
        assert metrics.total("poold_sessions_ended_total", cause="timeout_startup") == 0
        served(daemon)
        assert daemon.stop() == 0


def test_clones_that_die_at_once(poold: Poold, folder: Path) -> None:
    """A mold whose clones all die before they are ready is replaced like one that cannot clone."""
    daemon = poold(options=vandal(folder)).start()
    mold = mold_of(daemon)
    (folder / f"sterile-{mold}").touch()
    served(daemon)
    assert daemon.event("mold_failing", pid=mold)
    metrics = daemon.metrics()
    assert metrics.total("poold_mold_starts_total") == 2
    assert metrics.total("poold_children_failed_total", reason="stillborn") == metrics.total("poold_children_failed_total")


def test_substitute_that_fails(poold: Poold, folder: Path) -> None:
    """Where a substitute cannot import the handler the old mold stays; it is tried again, more slowly, until it is of no use no more."""
    daemon = poold(options=moody(folder, **{"timeouts.startup": 60})).start()
    mold = mold_of(daemon)
    (folder / "mood").write_text("raise")
    before = starve(mold)
    with daemon.connect() as client:
        eventually(lambda: len(daemon.events("mold_failing")) >= 2, "a second try")
        eventually(lambda: len(daemon.events("mold_failed")) >= 2, "it fails too")
        failed = daemon.events("mold_failed")
        assert failed[0]["reason"] == "RuntimeError: not in the mood"
        assert failed[1]["retry_seconds"] > failed[0]["retry_seconds"]
        resource.prlimit(mold, resource.RLIMIT_NOFILE, before)
        client.send(b"hello\n")
        assert client.line().endswith("hello")
    eventually(lambda: titled(daemon, "mold") == [mold], "the old mold alone is there")
    assert daemon.events("mold_replaced") == []
    assert daemon.metrics().total("poold_children_failed_total") == daemon.metrics().total("poold_mold_starts_total") - 1


@needs_root
def test_limit_of_tasks(poold: Poold, folder: Path) -> None:
    """At a limit of tasks, where no substitute can be started either, the mold stays, and clones again when there is room."""
    daemon = poold(options=vandal(folder, **{"timeouts.startup": 60})).start()
    mold = mold_of(daemon)
    with pids_limit(daemon.pid, 1000) as limit:
        for pid in (mold, *titled(daemon, "exporter")):
            for task in Path(f"/proc/{pid}/task").iterdir():
                (pids_folder(daemon.pid) / "cgroup.procs").write_text(task.name)
        limit("1")
        with daemon.connect() as client:
            assert daemon.event("mold_failing")["pid"] == mold
            assert "Resource temporarily unavailable" in daemon.event("mold_failed")["reason"]
            assert titled(daemon, "mold") == [mold]
            limit("max")
            assert client.ask("echo hello") == "hello"
    assert mold_of(daemon) == mold
    assert daemon.metrics().total("poold_children_failed_total") == 0


def pids_folder(pid: int) -> Path:
    """Return the control group that `pids_limit` has put a process into."""
    root = Path("/sys/fs/cgroup")
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if path.endswith(f"-{pid}"):
            return root / controllers / path.lstrip("/")
    raise LookupError(pid)


def test_reload_while_a_substitute_starts(poold: Poold, folder: Path) -> None:
    """A reload's mold takes the place of both, the one that is of no use and the substitute that is on its way; there are never more."""
    daemon = poold(options=moody(folder, **{"timeouts.startup": 60, "timeouts.kill": 1})).start()
    mold = mold_of(daemon)
    (folder / "mood").write_text("deaf")
    starve(mold)
    with daemon.connect() as client:
        daemon.event("mold_failing")
        (substitute,) = eventually(lambda: [pid for pid in titled(daemon, "mold") if pid != mold], "a substitute")
        eventually((folder / str(substitute)).exists, "it has read its mood, and hangs")
        (folder / "mood").write_text("good")
        assert daemon.cli("reload").returncode == 0
        client.send(b"hello\n")
        assert client.line().endswith("hello")
    eventually(lambda: gone(mold) and gone(substitute), "both have left")
    assert daemon.metrics().total("poold_children_failed_total") == 0
    assert daemon.events("mold_replaced") == []


def test_mold_that_dies_while_its_substitute_starts(poold: Poold, folder: Path) -> None:
    """When a mold dies whose substitute is on its way, that one is waited for and no third one is started."""
    daemon = poold(options=moody(folder, **{"timeouts.startup": 60, "timeouts.import": 3})).start()
    mold = mold_of(daemon)
    (folder / "mood").write_text("deaf")
    starve(mold)
    with daemon.connect() as client:
        daemon.event("mold_failing")
        (substitute,) = eventually(lambda: [pid for pid in titled(daemon, "mold") if pid != mold], "a substitute")
        os.kill(mold, signal.SIGKILL)
        daemon.event("child_failed", kind="mold", pid=mold)
        assert titled(daemon, "mold") == [substitute]
        eventually((folder / str(substitute)).exists, "it has read its mood, and hangs")
        (folder / "mood").write_text("good")
        # It hangs, and is ended like any mold that does; the next one is what was waited for.
        daemon.event("handler_import_failed")
        client.send(b"hello\n")
        assert client.line().endswith("hello")
    daemon.metric("poold_mold_starts_total", 3)


# It says what it may not.


def words(*reports: bytes) -> str:
    """Return what a mold is to say."""
    return " ".join(report.hex() for report in reports)


def answer(slot: int, incarnation: int, made: int) -> bytes:
    """Return the bytes of an answer."""
    return ANSWER_HEAD + struct.pack("<III", slot, incarnation, 0) + ORDER_RESULT.pack(made)


LIES = {
    "another hello": words(pack_mold_report(MoldWord.HELLO, text=__version__)),
    "ready twice": words(pack_mold_report(MoldWord.READY, number=1)),
    "failed after all": words(pack_mold_report(MoldWord.FAILED, text="no")),
    "an answer to nothing": words(answer(16, 99, 12345)),
    "no error either": words(answer(16, 99, -11)),
    "many answers": words(*[answer(16, 1, 12345)] * 20000),
}


@pytest.mark.parametrize("who", ["says", "child-says"])
@pytest.mark.parametrize("lie", LIES)
def test_mold_that_says_what_it_may_not(poold: Poold, folder: Path, who: str, lie: str) -> None:
    """A mold that says a word twice, out of turn or without an order is ended for it, and another one serves; sessions go on."""
    daemon = poold(options=vandal(folder)).start()
    mold = mold_of(daemon)
    with daemon.connect() as bystander:
        assert bystander.ask("echo first") == "first"
        (folder / f"{who}-{mold}").write_text(LIES[lie])
        served(daemon)
        daemon.event("protocol_error", pid=mold)
        served(daemon)
        assert bystander.ask("echo last") == "last"
    eventually(lambda: gone(mold), "the liar is gone")
    assert len(daemon.events("protocol_error")) == 1
    assert daemon.metrics().total("poold_mold_starts_total") == 2
    daemon.metric("poold_children_failed_total", 1, reason="exit")


def test_dead_mold_in_whose_name_somebody_speaks(poold: Poold, folder: Path) -> None:
    """What others say without an end on the channel of a mold that has died keeps nobody from its replacement."""
    daemon = poold(options=vandal(folder)).start()
    mold = mold_of(daemon)
    (folder / f"child-says-{mold}").write_text(words(*[answer(16, 1, 12345)] * 50000))
    with daemon.connect():
        with contextlib.suppress(ProcessLookupError):
            os.kill(mold, signal.SIGKILL)
        eventually(lambda: gone(mold), "it is reaped")
        served(daemon)
    served(daemon)


# The parts.


@given(st.lists(st.tuples(st.sampled_from(list(MoldWord)), st.integers(0, 2)), max_size=30), st.integers(0, 5))
def test_what_a_mold_may_say(said: list[tuple[MoldWord, int]], orders: int) -> None:
    """HELLO, then READY or FAILED, then the answers to its orders one after the other; the first word that is another is refused."""
    mold = Mold(Child(0, 1, Kind.MOLD, 1, 0.0), seconds=60.0)
    mold.unanswered.extend((16, incarnation) for incarnation in range(orders))
    legal = True
    history: list[MoldWord] = []
    for word, incarnation in said:
        expected = {
            MoldWord.HELLO: not history,
            MoldWord.READY: history == [MoldWord.HELLO],
            MoldWord.FAILED: history == [MoldWord.HELLO],
            MoldWord.ANSWER: MoldWord.READY in history and incarnation == history.count(MoldWord.ANSWER) < orders,
        }[word]
        try:
            mold.note_report(MoldReport(word, answer=(16, incarnation, 0, 0)))
        except ProtocolError:
            legal = False
        assert legal is expected
        if not legal:
            return
        history.append(word)


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans()), min_size=1, max_size=50))
def test_streak(tries: list[tuple[float, bool]]) -> None:
    """A mold is given up after so many failures in a row, and over so many seconds; the first since a success begins anew."""
    streak, now, row = Streak(), 0.0, list[float]()
    for passed, first in tries:
        now += passed
        row = [now] if first else [*row, now]
        assert streak.failed(now, first=first) is (len(row) >= FAILURES_MAX and now - row[0] >= FAILURES_SECONDS)

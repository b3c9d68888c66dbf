"""The mold: workers are the master's own children, and a mold that dies, hangs or fails harms nobody who is served."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from poold.mold import clone
from tests.childkit import mold_of
from tests.procfs import alive, children_of, descendants, kilobytes, open_files, signal_masks, smaps_rollup, stat_fields, title
from tests.support import HANDLERS, Daemon, Poold
from tests.waiting import eventually

# What a mold loads of the standard library, for what: the handler's socket and the channel (socket, _socket, selectors, _selectors,
# select, math, array, errno), the clone and the pages (ctypes, _ctypes, _struct, struct), the settings (json, _json, re and what
# they need), limits (resource), words (enum), titles (_setproctitle).
KNOWN_IN_MOLD = frozenset(
    """__future__ _bisect _collections _ctypes _functools _json _operator _selectors _setproctitle _signal _sre _socket _struct array
    atexit collections copyreg ctypes enum errno functools gc importlib itertools json keyword math operator re reprlib resource
    select selectors signal socket struct time types warnings""".split()
)


def test_workers_are_children_of_the_master(poold: Poold) -> None:
    """A worker's parent is the master, and the master gets its exit status and what it used."""
    daemon = poold().start()
    with daemon.connect() as client:
        pid = int(client.ask("pid"))
        assert pid in children_of(daemon.master)
        assert children_of(mold_of(daemon)) == []
        client.send(b"exit 7\n")
        assert client.rest() == b""
    ended = daemon.event("session_ended")
    assert (ended["pid"], ended["cause"], ended["status"]) == (pid, "exit", 7)
    metrics = daemon.metrics()
    assert metrics.total("poold_children_failed_total", reason="exit") == 1
    assert metrics["poold_child_cpu_seconds_sum"] > 0
    assert metrics["poold_child_memory_peak_bytes_sum"] > 1 << 20


def test_a_spare_starts_clean(poold: Poold) -> None:
    """A spare blocks, ignores and catches no signal, whatever the handler's import did to the mold's."""
    daemon = poold(options={"server.handler": "moody:serve", "server.environment": {"MOOD": "/nonexistent"}, "pool.min_spare": 1})
    mood = daemon.folder / "mood"
    mood.write_text("signals")
    daemon.write(options={"server.handler": "moody:serve", "server.environment": {"MOOD": str(mood)}, "pool.min_spare": 1})
    daemon.start()
    [spare] = eventually(lambda: [row["pid"] for row in daemon.children("worker") if row["state"] == "spare"])
    assert signal_masks(spare) == {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0}
    assert stat_fields(spare)[3] == str(spare), "it leads a session"


def test_threads_in_the_mold_mean_the_fallback(poold: Poold) -> None:
    """A handler that starts threads at import is served by workers that were forked twice, with one warning."""
    daemon = poold(options={"server.handler": "forker:serve"}).start()
    for _ in range(5):
        with daemon.connect() as client:
            facts = json.loads(client.line())
            assert facts["ppid"] == daemon.master
            assert facts["tid"] == facts["pid"]
            assert facts["tasks"] == 1
    daemon.metric("poold_sessions_ended_total", 5, cause="ok")
    assert len(daemon.events("mold_has_threads")) == 1
    assert children_of(mold_of(daemon)) == []
    assert daemon.metrics()["poold_unknown_children_reaped_total"] == 0


def test_fallback_workers_die_with_the_master(poold: Poold) -> None:
    """A worker that was forked twice gets TERM when the master dies, like any other."""
    daemon = poold(options={"server.handler": "forker:serve"}).start(laws=False)
    with daemon.connect() as client:
        pid = json.loads(client.line())["pid"]
        daemon.crash()
        assert client.rest() == b""
    assert not alive(pid)
    daemon.control.unlink()


def test_thread_id_of_a_worker(poold: Poold) -> None:
    """The C library in a worker knows the worker's thread id, not the mold's: setting an affinity moves the worker."""
    daemon = poold(options={"server.handler": "affine:serve"})
    daemon.start()
    mold = mold_of(daemon)
    before = os.sched_getaffinity(mold)
    with daemon.connect() as client:
        pid, result = map(int, client.line().split())
        assert result == 0
        assert os.sched_getaffinity(pid) == {min(before)}
        assert os.sched_getaffinity(mold) == before


def test_master_dies_and_everybody_leaves(poold: Poold) -> None:
    """When the master is killed, spares, mold and exporter leave at once, and sessions get TERM."""
    daemon = poold().start(laws=False)
    with daemon.connect() as client:
        client.ask("pid")
        everybody = children_of(daemon.master)
        assert len(everybody) >= 4
        daemon.crash()
        assert client.rest() == b""
    assert [pid for pid in everybody if alive(pid)] == []
    daemon.control.unlink()


def test_mold_killed_while_sessions_go_on(poold: Poold) -> None:
    """A killed mold is replaced; the session that was served does not notice, and new ones are served."""
    daemon = poold(options={"pool.min_spare": 0, "pool.max_spare": 0}).start()
    with daemon.connect() as client:
        client.ask("pid")
        first = mold_of(daemon)
        os.kill(first, signal.SIGKILL)
        with daemon.connect() as newcomer:
            assert newcomer.ask("echo served") == "served"
        assert client.ask("echo as before") == "as before"
        assert mold_of(daemon) != first
    metrics = daemon.metrics()
    assert metrics["poold_mold_starts_total"] == 2
    assert metrics.total("poold_children_failed_total", reason="signal") == 1


def test_hung_mold_is_replaced(poold: Poold) -> None:
    """A mold that answers no order for two seconds is replaced, and the client that waited is served."""
    daemon = poold(options={"pool.min_spare": 0, "pool.max_spare": 0}).start()
    os.kill(mold_of(daemon), signal.SIGSTOP)
    with daemon.connect() as client:
        assert client.ask("echo late but served") == "late but served"
    assert daemon.event("mold_silent")
    daemon.metric("poold_children_failed_total", 1, reason="timeout")
    assert daemon.metrics().total("poold_sessions_ended_total", cause="lost") == 0


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        ("raise", "RuntimeError: not in the mood"),
        ("exit", "SystemExit: 0"),
        ("_exit", "the mold ended with status 0"),
        ("hang", "took longer"),
    ],
)
def test_handler_that_cannot_be_imported(poold: Poold, mood: str, reason: str) -> None:
    """A start with a handler that fails, exits or hangs at import ends with 1 and says why; `check` says the same."""
    daemon = poold()
    (daemon.folder / "mood").write_text(mood)
    options = {"server.handler": "moody:serve", "server.environment": {"MOOD": str(daemon.folder / "mood")}, "timeouts.import": 2}
    daemon.write(options=options)
    daemon.start(wait=False)
    assert daemon.wait() == 1
    assert reason in daemon.event("start_failed")["reason"]
    checked = daemon.cli("check", "-c", str(daemon.config))
    assert checked.returncode == 1
    assert mood == "_exit" or reason in checked.stderr


def test_mold_that_fails_later(poold: Poold) -> None:
    """When no new mold can be had, tries slow down, sessions and spares go on, and it recovers by itself."""
    daemon = poold()
    mood = daemon.folder / "mood"
    daemon.write(options={"server.handler": "moody:serve", "server.environment": {"MOOD": str(mood)}, "pool.min_spare": 2})
    daemon.start()
    daemon.metric("poold_children", 2, kind="worker", state="spare")
    with daemon.connect() as client:
        assert client.ask("one").endswith("one")
        daemon.metric("poold_children", 2, kind="worker", state="spare")
        mood.write_text("raise")
        os.kill(mold_of(daemon), signal.SIGKILL)
        eventually(lambda: daemon.metrics()["poold_mold_starts_total"] >= 4)
        reasons = [event["reason"] for event in daemon.events("mold_failed")]
        assert len(reasons) == len(set(reasons)) == 2
        with daemon.connect() as other:
            assert other.ask("two").endswith("two")
        mood.write_text("good")
        assert client.ask("three").endswith("three")
        with daemon.connect() as third, daemon.connect() as fourth:
            assert third.ask("four").endswith("four")
            assert fourth.ask("five").endswith("five")


def test_process_that_nobody_ordered(poold: Poold) -> None:
    """A process that the handler's import made and that falls to the master is counted as unknown and changes nothing."""
    daemon = poold()
    (daemon.folder / "mood").write_text("spawn")
    daemon.write(options={"server.handler": "moody:serve", "server.environment": {"MOOD": str(daemon.folder / "mood")}})
    daemon.start()
    daemon.metric("poold_unknown_children_reaped_total", 1)
    with daemon.connect() as client:
        assert client.ask("hello").endswith("hello")


def test_preload_false_imports_in_each_worker(poold: Poold) -> None:
    """With preload = false the mold never has the handler; a worker imports it while it is a spare."""
    daemon = poold(options={"pool.preload": False, "pool.min_spare": 1}).start()
    with daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
    maps = Path(f"/proc/{mold_of(daemon)}/environ").read_bytes()
    assert b"NOTIFY_SOCKET" not in maps


def test_weight_of_the_mold(poold: Poold) -> None:
    """Besides the handler's own, a mold has loaded a known list of modules, and nothing of the master's."""
    daemon = poold(options={"server.handler": "weight:serve"}).start()
    with daemon.connect() as client:
        modules = set(json.loads(client.line()))
    ours = {name for name in modules if name.split(".")[0] == "poold"}
    assert ours == {
        "poold",
        "poold.address",
        "poold.arguments",
        "poold.channel",
        "poold.connection",
        "poold.errors",
        "poold.log",
        "poold.mold",
        "poold.mold.prefault",
        "poold.mold.clone",
        "poold.mold.compact",
        "poold.mold.main",
        "poold.mold.orders",
        "poold.mold.warmup",
        "poold.mold.scout",
        "poold.pages",
        "poold.plain",
        "poold.sandbox",
        "poold.stream",
        "poold.title",
        "poold.worker",
        "poold.worker.adapters",
        "poold.worker.main",
    }
    bare = subprocess.run([sys.executable, "-P", "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True)
    # A stray import shows here before it shows in a benchmark.
    assert {name.split(".")[0] for name in modules - ours - set(bare.stdout.split())} <= KNOWN_IN_MOLD


def test_a_large_handler_is_in_huge_pages(poold: Poold) -> None:
    """What a large handler has imported is cloned by the huge page, where the kernel can; its workers write to their own."""
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release < (6, 1) or not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        pytest.skip("this kernel cannot collapse memory into huge pages")
    daemon = poold()
    (daemon.folder / "large.py").write_text("DATA = [str(i) for i in range(1_000_000)]\nfrom cases import serve\n")
    daemon.write(options={"server.handler": "large:serve", "server.path": [str(daemon.folder), str(HANDLERS)], "pool.min_spare": 1})
    daemon.start()
    assert kilobytes(smaps_rollup(mold_of(daemon)), "AnonHugePages") > 16 << 10
    with daemon.connect() as client:
        assert client.ask("echo hello") == "hello"


def test_a_scout_leaves_the_handler_alone(poold: Poold) -> None:
    """With preload = false nothing of the handler is imported in the mold, whatever is rehearsed there."""
    daemon = poold()
    (daemon.folder / "told.py").write_text(
        f"import os\nopen({str(daemon.folder / 'imports')!r}, 'a').write(f'{{os.getpid()}}\\n')\nfrom cases import serve\n"
    )
    options = {
        "server.handler": "told:serve",
        "server.path": [str(daemon.folder), str(HANDLERS)],
        "pool.preload": False,
        "pool.min_spare": 2,
    }
    daemon.write(options={**options, "pool.max_spare": 2})
    daemon.start()
    daemon.metric("poold_children", 2, kind="worker", state="spare")
    assert sorted(int(line) for line in (daemon.folder / "imports").read_text().split()) == sorted(
        row["pid"] for row in daemon.children("worker")
    )


def test_only_named_descriptors_reach_mold_and_exporter(poold: Poold) -> None:
    """A mold holds its channel, an exporter its listener and its lifeline; neither a client's listener."""
    daemon = poold().start()
    mold, [exporter] = mold_of(daemon), [row["pid"] for row in daemon.children("exporter")]
    assert sorted(re.sub(r":\[.*| .*|/memfd:", "", name) for name in open_files(mold).values()) == [
        "/dev/null",
        "pipe",
        "pipe",
        "socket",
    ]
    listening = os.stat(f"/proc/{daemon.master}/fd/{_fd_of_listener(daemon)}").st_ino
    for pid in (mold, exporter):
        assert f"socket:[{listening}]" not in open_files(pid).values()
    assert title(mold) == "poold: mold"
    assert title(exporter) == "poold: exporter"
    assert len([pid for pid in descendants(daemon.master) if pid in (mold, exporter)]) == 2


def _fd_of_listener(daemon: Daemon) -> int:
    inode = os.fstat(daemon.listener.fileno()).st_ino
    return next(fd for fd, name in open_files(daemon.master).items() if name == f"socket:[{inode}]")


def test_variables_of_the_mold_alone(poold: Poold) -> None:
    """What a mold is told by its environment, a handler and what it starts do not see, unless the settings say it too."""
    daemon = poold().start()
    with daemon.connect() as client:
        assert "LD_BIND_NOW" not in json.loads(client.ask("facts"))["environ"]
    daemon.stop()
    daemon = poold(options={"server.environment": {"LD_BIND_NOW": "1"}}).start()
    with daemon.connect() as client:
        assert json.loads(client.ask("facts"))["environ"]["LD_BIND_NOW"] == "1"


def test_clone_is_used_here() -> None:
    """On this machine workers are cloned; otherwise these tests would see the fallback only."""
    assert clone.CLONE_WORKS

"""A master that is killed leaves nobody behind, at whatever moment: each child ends, whether or not it has set itself up by then."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faultkit import Poold, exporter_of, mold_of, needs_strace, state, traced
from tests.support import Daemon, children_of, eventually, take_orphans

COLD = {"pool.min_spare": 0, "pool.max_spare": 0}
# Never to be reached: whoever is held is let go when the tracer ends.
HELD = "60000000:when=1"


@contextlib.contextmanager
def orphaned(daemon: Daemon) -> Iterator[None]:
    """Kill the master at the end of the block, and let nothing be left a moment after it."""
    before = children_of(os.getpid())
    try:
        yield
    finally:
        take_orphans(before)
        daemon.control.unlink(missing_ok=True)


def murder(daemon: Daemon) -> None:
    """Kill the master."""
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.wait()


def newcomer(daemon: Daemon, before: list[int]) -> int:
    """Wait until a tracer holds a child that the master did not have before, and return its pid."""

    def held() -> list[int]:
        return [pid for pid in children_of(daemon.pid) if pid not in before and state(pid) == "t"]

    return eventually(held, "a child that is held")[0]


@needs_strace
@pytest.mark.parametrize("moment", ["setsid:delay_enter", "prctl:delay_enter", "prctl:delay_exit", "sendto:delay_exit"])
def test_worker_that_is_being_born(poold: Poold, moment: str) -> None:
    """A worker whose master dies before it has asked to be told of that, or right after, ends."""
    daemon = poold(options=COLD).start(laws=False)
    before = children_of(daemon.pid)
    with orphaned(daemon), traced(daemon.folder, mold_of(daemon), f"inject={moment}={HELD}", follow=True), daemon.connect():
        newcomer(daemon, before)
        murder(daemon)


@needs_strace
@pytest.mark.parametrize("moment", ["prctl:delay_enter", "sendto:delay_exit"])
def test_mold_that_is_starting(poold: Poold, moment: str) -> None:
    """A mold whose master dies before it has asked to be told of that, or right after, does not begin an import that hangs."""
    daemon = poold()
    mood = daemon.folder / "mood"
    daemon.write(options={**COLD, "server.handler": "moody:serve", "server.environment": {"MOOD": str(mood)}})
    daemon.start(laws=False)
    # Or the exporter's first question would have the master itself held.
    daemon.metric("poold_children", 1, kind="exporter", state="serving")
    mood.write_text("hang")
    before = children_of(daemon.pid)
    with orphaned(daemon), traced(daemon.folder, daemon.pid, f"inject={moment}={HELD}", follow=True):
        os.kill(mold_of(daemon), signal.SIGKILL)
        newcomer(daemon, before)
        murder(daemon)


def test_mold_that_is_deaf(poold: Poold) -> None:
    """A mold whose handler ignores TERM and hangs at its import ends with its master."""
    daemon = poold()
    mood = daemon.folder / "mood"
    daemon.write(options={**COLD, "server.handler": "moody:serve", "server.environment": {"MOOD": str(mood)}})
    daemon.start(laws=False)
    mood.write_text("deaf")
    before = children_of(daemon.pid)
    with orphaned(daemon):
        daemon.kill(signal.SIGHUP)
        [mold] = eventually(lambda: [pid for pid in children_of(daemon.pid) if pid not in before and mood.with_name(str(pid)).exists()])
        murder(daemon)
    assert state(mold) == ""


@needs_strace
@pytest.mark.parametrize("moment", ["prctl:delay_enter", "prctl:delay_exit"])
def test_exporter_that_is_starting(poold: Poold, moment: str) -> None:
    """An exporter whose master dies before it watches its lifeline ends."""
    daemon = poold(options=COLD).start(laws=False)
    exporter = exporter_of(daemon)
    daemon.metric("poold_children", 1, kind="exporter", state="serving")
    before = children_of(daemon.pid)
    with orphaned(daemon), traced(daemon.folder, daemon.pid, f"inject={moment}={HELD}", follow=True):
        os.kill(exporter, signal.SIGKILL)
        newcomer(daemon, before)
        murder(daemon)


def silent_names(folder: Path) -> dict[str, object]:
    """Return how to start poold where the name service never answers."""
    resolver = folder / "resolv.conf"
    resolver.write_text("nameserver 192.0.2.1\n")
    # Packets to the documentation's network come back to a host that does not know it, and vanish.
    script = f'ip link set lo up && ip route add 192.0.2.0/24 dev lo && mount --bind {resolver} /etc/resolv.conf && exec "$@"'
    return {"wrapper": ("unshare", "-n", "-m", "sh", "-c", script, "sh"), "environ": {"RES_OPTIONS": "timeout:30 attempts:5"}}


NAMED = '[[listener]]\naddress = "tcp://nobody.invalid:7001"\n'


@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip", "mount"))), reason="needs root, unshare(1), ip(8) and mount(8)"
)
@pytest.mark.parametrize("number", [0, signal.SIGHUP, signal.SIGUSR2], ids=["start", "reload", "upgrade"])
def test_judge_that_waits_for_a_name(poold: Poold, number: int) -> None:
    """Who judges the settings, at the start, for a reload or an upgrade, ends with the master although the name service is silent."""
    daemon = poold(options=COLD, settings="" if number else NAMED)
    where = silent_names(daemon.folder)
    with orphaned(daemon):
        daemon.start(wait=bool(number), laws=False, **where)  # type: ignore[arg-type]
        before = children_of(daemon.pid) if number else []
        if number:
            daemon.write(options=COLD, settings=NAMED)
            daemon.kill(number)
        eventually(lambda: [pid for pid in children_of(daemon.pid) if pid not in before and asks(pid)], "a question to the name service")
        murder(daemon)


def asks(pid: int) -> bool:
    """Say whether a process waits for an answer of the name service: it has a UDP socket."""
    try:
        return any(int(line.split()[1].split(":")[1], 16) and line.split()[2].endswith(":0035") for line in udp(pid))
    except (FileNotFoundError, ProcessLookupError):
        return False


def udp(pid: int) -> list[str]:
    """Return the UDP sockets in a process's network (proc(5))."""
    return Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]

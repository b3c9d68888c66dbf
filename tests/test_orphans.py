"""A master that is killed leaves nobody behind, at whatever moment: each child ends, whether or not it has set itself up by then."""

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.childkit import exporter_of, mold_of
from tests.faultkit import murder, orphaned, traced
from tests.needs import needs_root, needs_strace
from tests.procfs import children_of, state, title
from tests.support import Client, Daemon, Poold, free_port
from tests.waiting import eventually

COLD = {"pool.min_spare": 0, "pool.max_spare": 0}
# Never to be reached: whoever is held is let go when the tracer ends.
HELD = "60000000:when=1"


def newcomer(daemon: Daemon, before: list[int]) -> int:
    """Wait until a tracer holds a child that the master did not have before, and return its pid."""

    def held() -> list[int]:
        return [pid for pid in children_of(daemon.pid) if pid not in before and state(pid) == "t"]

    return eventually(held, "a child that is held")[0]


def test_many_sessions(poold: Poold) -> None:
    """When a master is killed its fifty sessions end with it, and another one listens on the same port at once."""
    port = free_port()
    arguments = {"options": {"pool.max_children": 60}, "settings": f'[[listener]]\naddress = "tcp://127.0.0.1:{port}"\n'}
    daemon = poold(**arguments).start(laws=False)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(("127.0.0.1", port))) for _ in range(50)]
        for client in clients:
            client.ask("pid")
        with orphaned(daemon):
            murder(daemon)
        assert {client.rest() for client in clients} == {b""}
        poold(**arguments).start(laws=False)
        with Client(("127.0.0.1", port)) as client:
            assert client.ask("echo another") == "another"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"server.user": "nobody"}, id="another user", marks=needs_root),
        pytest.param({"pool.preload": False}, id="not preloaded"),
        pytest.param({"pool.connections_per_child": 0}, id="many sessions"),
        pytest.param({"server.handler": None, "server.command": ["cat"]}, id="command"),
        pytest.param(
            {"server.handler": None, "server.command": ["/bin/cat"], "server.user": "nobody"}, id="another's command", marks=needs_root
        ),
    ],
)
@pytest.mark.parametrize("upgrades", [0, 1])
def test_every_kind_of_worker(poold: Poold, options: dict[str, object], upgrades: int) -> None:
    """A session ends with the master, whatever serves it and whoever it is, also when it is older than the master's program."""
    daemon = poold(options={"pool.min_spare": 1, "server.handler": "poold.handlers.echo:serve", "server.path": ["/"], **options})
    daemon.start(laws=False)
    with daemon.connect() as client:
        assert client.ask("hello") == "hello"
        for generation in range(2, 2 + upgrades):
            daemon.kill(signal.SIGUSR2)
            daemon.event("upgrade_applied", generation=generation)
            assert client.ask("hello") == "hello"
        with orphaned(daemon):
            murder(daemon)
        assert client.rest() == b""


@needs_strace
def test_master_that_becomes_another_program(poold: Poold) -> None:
    """A master that is killed right after the exec of an upgrade, before the new program's first step, leaves nobody either."""
    daemon = poold(options={"pool.min_spare": 1}).start(laws=False)
    with daemon.connect() as client, orphaned(daemon):
        client.ask("pid")
        # The first call that an interpreter makes.
        with traced(daemon.folder, daemon.pid, f"inject=getrandom:delay_enter={HELD}"):
            daemon.kill(signal.SIGUSR2)
            eventually(lambda: state(daemon.pid) == "t" and "successor" in title(daemon.pid), "the new program is held")
            daemon.kill(signal.SIGKILL)
        # Only now: its tracer comes first.
        daemon.wait()
        assert client.rest() == b""


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


needs_silence = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip", "mount"))), reason="needs root, unshare(1), ip(8) and mount(8)"
)


@needs_silence
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


@needs_silence
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_stop_while_the_judge_waits_for_a_name(poold: Poold, number: int) -> None:
    """A stop at the start ends poold with 0 although the name service is silent, and who judges with it; other signals do not."""
    daemon = poold(options=COLD, settings=NAMED)
    daemon.start(wait=False, laws=False, **silent_names(daemon.folder))  # type: ignore[arg-type]
    [judge] = eventually(lambda: [pid for pid in children_of(daemon.pid) if asks(pid)], "a question to the name service")
    for other in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        daemon.kill(other)
    assert asks(judge)
    # As Ctrl-C at a terminal does, which means both.
    os.kill(judge, number)
    daemon.kill(number)
    assert daemon.wait() == 0
    assert state(judge) == ""
    text = daemon.log.read_text()
    assert "stopped exit_status=0" in text
    assert "Traceback" not in text


# Sends itself a TERM that waits, and becomes another program.
SIGNALLED = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getpid(), signal.SIGTERM)
os.execv(sys.argv[1], sys.argv[1:])
"""


@needs_silence
def test_stop_from_before_while_the_judge_waits_for_a_name(poold: Poold) -> None:
    """A stop from before poold's first line is not forgotten when the name service is silent."""
    daemon = poold(options=COLD, settings=NAMED)
    where = silent_names(daemon.folder)
    where["wrapper"] = (*where["wrapper"], sys.executable, "-c", SIGNALLED)  # type: ignore[misc]
    daemon.start(wait=False, laws=False, **where)  # type: ignore[arg-type]
    assert daemon.wait() == 0
    assert "stopped exit_status=0" in daemon.log.read_text()


def asks(pid: int) -> bool:
    """Say whether a process waits for an answer of the name service: it has a UDP socket."""
    try:
        return any(int(line.split()[1].split(":")[1], 16) and line.split()[2].endswith(":0035") for line in udp(pid))
    except (FileNotFoundError, ProcessLookupError):
        return False


def udp(pid: int) -> list[str]:
    """Return the UDP sockets in a process's network (proc(5))."""
    return Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]

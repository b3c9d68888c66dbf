"""What an upgrade leaves of the process: all that it was started with, the same descriptors, and nothing for any program to inherit."""

import json
import os
import resource
import socket
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.childkit import spares_of
from tests.faultkit import mischievous, traced
from tests.needs import needs_root, needs_strace
from tests.procfs import held, open_files
from tests.support import Client, Poold, free_port
from tests.upgradekit import asked_for_an_upgrade, inheritable, install, path_of, upgraded
from tests.waiting import eventually

# Writes down what each fresh interpreter was started with, for who looks from outside: a title hides it in /proc.
RECORDER = """
import json, os, sys
if folder := os.environ.get("RECORD"):
    with open(f"{folder}/{os.getpid()}-{len(os.listdir(folder))}", "w") as file:
        json.dump([sys.orig_argv, dict(os.environ)], file)
"""


def process(pid: int) -> dict[str, Any]:
    """Return what a process has been started with and passes on, by the kernel's word."""
    place = Path(f"/proc/{pid}")
    keys = ("Umask", "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn")
    status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines() if ":\t" in line)
    return {
        **{key: status[key] for key in keys if key in status},
        **{key: value for key, value in status.items() if key.startswith("Cap")},
        "limits": (place / "limits").read_text(),
        "oom": (place / "oom_score_adj").read_text(),
        "nice": os.getpriority(os.PRIO_PROCESS, pid),
        "cwd": os.readlink(place / "cwd"),
        "cgroup": (place / "cgroup").read_text(),
        "sid": os.getsid(pid),
        "affinity": os.sched_getaffinity(pid),
    }


@needs_root
def test_all_that_it_was_started_with(poold: Poold) -> None:
    """Limits, priority, umask, capabilities and the rest of the start are the master's after upgrades, and so are its children's."""
    prelude = (
        "import ctypes, resource\nos.nice(3)\nos.umask(0o027)\n"
        "open('/proc/self/oom_score_adj', 'w').write('123')\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 4096))\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 1 << 20))\n"
        "resource.setrlimit(resource.RLIMIT_STACK, (1 << 22, 1 << 24))\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        # PR_CAPBSET_DROP of CAP_SYS_TIME, PR_SET_NO_NEW_PRIVS (prctl(2)).
        "assert ctypes.CDLL(None).prctl(24, 25, 0, 0, 0) == ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0"
    )
    daemon = poold(options={"pool.min_spare": 1, "pool.max_children": 2000}).start(prelude=prelude)

    def everybody() -> dict[str, dict[str, Any]]:
        [spare] = spares_of(daemon, 1)
        pids = {"master": daemon.master, "spare": spare, **{kind: daemon.children(kind)[0]["pid"] for kind in ("mold", "exporter")}}
        return {name: {key: value for key, value in process(pid).items() if (name, key) not in OWN} for name, pid in pids.items()}

    before = everybody()
    # Raised in the master, as it was for the others.
    assert before["master"]["limits"] != before["spare"]["limits"]
    assert resource.prlimit(daemon.children("mold")[0]["pid"], resource.RLIMIT_NOFILE) == (300, 4096)
    for _ in range(3):
        upgraded(daemon)
    assert everybody() == before


# A session of one's own.
OWN = {(name, "sid") for name in ("spare", "mold", "exporter")}


def test_environment_is_that_of_the_start(poold: Poold, tmp_path: Path) -> None:
    """Each program of the master gets the variables and options of the first, but for sockets that were passed; no child gets more."""
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    installed = install(tmp_path / "installed")
    (installed.parent / "sitecustomize.py").write_text(RECORDER)
    daemon = poold(options={"pool.min_spare": 1, "server.environment": {"RECORD": str(recorded), **path_of(installed)}})
    daemon.start(environ={**path_of(installed), "RECORD": str(recorded), "LC_TIME": "C", "SECRET": "of the master"})

    def seen(what: str) -> list[tuple[list[str], dict[str, str]]]:
        found = []
        for file in sorted(recorded.iterdir(), key=lambda path: path.stat().st_mtime_ns):
            argv, environ = json.loads(file.read_text())
            if what in argv[1:4] or any(f"from {what} " in word for word in argv):
                found.append(([word.partition("=")[0] for word in argv], environ))
        return found

    daemon.event("exporter_ready")
    with daemon.connect() as client:
        first = json.loads(client.ask("facts"))["environ"]
    for _ in range(3):
        upgraded(daemon)
    with daemon.connect() as client:
        assert json.loads(client.ask("facts"))["environ"] == first
    [(_, start)] = seen("poold")
    expected = {key: value for key, value in start.items() if not key.startswith("LISTEN_")}
    successors = seen("poold.master.successor")
    assert [environ for _, environ in successors] == [expected] * 3
    assert {tuple(argv) for argv, _ in successors} == {tuple(successors[0][0])}
    del expected["NOTIFY_SOCKET"]
    assert [environ for _, environ in seen("poold.master.rehearsal")] == [expected] * 3
    eventually(lambda: len(seen("poold.mold.main")) == 4, "each program has had its mold")
    started = [environ for _, environ in seen("poold.mold.main")]
    assert [environ for environ in started if environ != started[0]] == []
    assert "SECRET" not in started[0]
    # It would write down what it was started with, if variables of the settings came to an exporter.
    daemon.event("exporter_ready", after=daemon.log.read_text().rindex("upgrade_applied"))
    assert not seen("poold.exporter.main")


def test_descriptors_are_the_same(poold: Poold, tmp_path: Path) -> None:
    """After several upgrades everything that listens is the same socket, and no descriptor's number grows."""
    own = f'[[listener]]\naddress = "unix://{tmp_path}/u.sock"\n[[listener]]\naddress = "tcp://127.0.0.1:{free_port()}"\n'
    daemon = poold(
        options={"pool.min_spare": 1, "log.level": "info"}, settings=own + '[[listener]]\naddress = "systemd://main"\nname = "main"\n'
    )
    daemon.start(laws=False)

    def settled() -> bool:
        kinds = [row["kind"] for row in daemon.children() if row["state"] in ("spare", "serving")]
        return sorted(kinds) == ["exporter", "logger", "mold", "worker"] and len(daemon.children()) == 4

    def listening() -> set[str]:
        files = set(open_files(daemon.master).values())
        tables = [Path(f"/proc/{daemon.master}/net/{table}").read_text() for table in ("tcp", "unix")]
        inodes = {line.split()[9] for line in tables[0].splitlines()[1:] if line.split()[3] == "0A"}
        inodes |= {line.split()[6] for line in tables[1].splitlines()[1:] if line.split()[3] == "00010000"}
        return {file for file in files if file.startswith("socket:[") and file[8:-1] in inodes}

    eventually(settled)
    before = listening()
    # Two that were opened, one that was passed, control and metrics.
    assert len(before) == 5
    upgraded(daemon)
    eventually(settled)
    numbers = held(daemon.master)
    for _ in range(4):
        upgraded(daemon)
        eventually(settled)
        assert listening() == before
        assert len(held(daemon.master)) == len(numbers)
        assert max(held(daemon.master)) <= max(numbers) + 1
        assert inheritable(daemon.master) == {}


def test_programs_of_handlers_inherit_nothing(poold: Poold) -> None:
    """What a handler starts without care has the standard streams and nothing else, before an upgrade and after it."""
    daemon = mischievous(poold, options={"pool.min_spare": 1}).start()
    look = "output ls -x -w 1000 /proc/self/fd"

    def nothing_to_inherit() -> bool:
        try:
            return not any(inheritable(row["pid"]) for row in daemon.children())
        except FileNotFoundError:
            # One has ended since it was listed: look once more.
            return False

    with daemon.connect() as old:
        # The fourth is that of the listing.
        assert old.ask(look).split() == ["0", "1", "2", "3"]
        upgraded(daemon)
        with daemon.connect() as new:
            assert new.ask(look).split() == old.ask(look).split() == ["0", "1", "2", "3"]
            # Whoever is only starting has what it was given by name.
            eventually(nothing_to_inherit, "nothing to inherit")
    assert inheritable(daemon.master) == {}


@needs_strace
def test_nothing_is_bound(poold: Poold, tmp_path: Path) -> None:
    """A master that could bind nothing any more is upgraded all the same: every socket is the one that it has."""
    own = f'[[listener]]\naddress = "unix://{tmp_path}/u.sock"\n[[listener]]\naddress = "tcp://127.0.0.1:{free_port()}"\n'
    daemon = poold(options={"pool.min_spare": 1}, settings=own).start(laws=False)
    with traced(daemon.folder, daemon.master, "inject=bind:error=EACCES", "inject=socket:error=EACCES:when=100+") as tracer:
        upgraded(daemon)
        with Client(f"{tmp_path}/u.sock") as client:
            assert client.ask("echo here") == "here"
        assert tracer.lines("bind(") == []


def test_who_is_queued_at_a_listener_that_leaves(poold: Poold) -> None:
    """Clients that wait at a listener that a reload has removed are served by the program after an upgrade; then it is closed."""
    port = free_port()
    leaving = f'[[listener]]\naddress = "tcp://127.0.0.1:{port}"\n'
    options = {"pool.max_children": 1, "pool.min_spare": 1, "timeouts.drain": 600}
    main = '[[listener]]\naddress = "systemd://main"\nname = "main"\n'
    daemon = poold(options=options, settings=main + leaving).start()
    with daemon.connect() as client, ExitStack() as stack:
        client.ask("pid")
        queued = [stack.enter_context(Client(("127.0.0.1", port))) for _ in range(3)]
        daemon.write(options=options, settings=main)
        assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
        upgraded(daemon)
        assert client.ask("echo still here") == "still here"
        client.finish()
        for number, each in enumerate(queued):
            assert each.ask(f"echo {number}") == str(number)
            each.close()
    daemon.event("listener_closed")
    # The service manager lets go of its copies when it reads that it may.
    daemon.notify.poll()
    with pytest.raises(ConnectionRefusedError):
        Client(("127.0.0.1", port))


def test_a_refused_client_that_stays(poold: Poold) -> None:
    """A client that was refused before an upgrade has its message and an end in peace, although it goes on sending."""
    daemon = poold(options={"pool.max_children": 1, "pool.min_spare": 1, "pool.when_full": "refuse", "pool.refuse_message": "full\n"})
    daemon.start()
    with daemon.connect() as client:
        client.ask("pid")
        with daemon.connect() as refused:
            assert refused.line() == "full"
            upgraded(daemon)
            refused.send(b"x")
            assert refused.rest() == b""
        assert client.ask("echo still here") == "still here"


def test_scrapes_during_upgrades(poold: Poold) -> None:
    """Each scrape that is made while upgrades run is answered, whole."""
    daemon = poold(options={"pool.min_spare": 1}).start(laws=False)
    daemon.metric("poold_children", 1, kind="exporter")
    scrapes = 0
    for _ in range(3):
        asked = len(daemon.events("upgrade_applied"))
        with ExitStack() as stack:
            asking = stack.enter_context(asked_for_an_upgrade(daemon))
            while len(daemon.events("upgrade_applied")) == asked:
                assert daemon.metrics().total("poold_children_max") == 256
                scrapes += 1
            assert json.loads(asking.line())["ok"]
    assert scrapes >= 3


def test_clients_that_are_open_during_an_upgrade(poold: Poold) -> None:
    """Who asked for the upgrade gets his answer; a client that has not asked yet, of control or metrics, gets an end and no reset."""
    daemon = poold(options={"pool.min_spare": 1}).start(laws=False)
    daemon.metric("poold_children", 1, kind="exporter")
    with (
        Client(str(daemon.control)) as silent,
        Client(("127.0.0.1", daemon.metrics_port)) as scraper,
        asked_for_an_upgrade(daemon) as asking,
    ):
        answer = json.loads(asking.line())
        assert (answer["ok"], answer["generation"], asking.rest()) == (True, 2, b"")
        assert silent.rest() == b""
        assert scraper.rest() == b""


def test_the_requester_of_an_upgrade_may_leave(poold: Poold) -> None:
    """An upgrade goes on when whoever asked for it has gone, whether that is known by the exec or not."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    for number in range(2, 5):
        client = asked_for_an_upgrade(daemon)
        if number % 2:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        daemon.event("upgrade_started")
        client.close()
        daemon.event("upgrade_applied", generation=number)
    upgraded(daemon)

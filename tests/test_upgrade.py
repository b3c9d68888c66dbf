"""The upgrade in place: other code in the same process, and nobody who is being served notices."""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

import poold as package
from tests.faultkit import frozen, needs_strace, traced
from tests.support import Client, Daemon, alive, children_of, eventually, free_port, open_files, signal_masks, take_orphans, title
from tests.upgradekit import Poold, asked_for_an_upgrade, in_the_successor, inheritable, install, mend, path_of, upgrade, upgraded
from tests.wirekit import visitors


def refused(daemon: Daemon, *words: str) -> None:
    """Have an upgrade refused for a reason with these words; afterwards everything is as it was."""
    daemon.metric("poold_children", 1, kind="mold")
    before = len(open_files(daemon.master)), daemon.ask("status")["generation"], daemon.children("mold")[0]["pid"]
    done = upgrade(daemon)
    assert done.returncode == 1
    for word in words:
        assert word in done.stderr
    daemon.metric("poold_upgrades_total", 1, result="refused")
    daemon.metric("poold_children", 1, kind="mold")
    assert (len(open_files(daemon.master)), daemon.ask("status")["generation"], daemon.children("mold")[0]["pid"]) == before
    assert daemon.events("upgrade_refused")
    with daemon.connect() as client:
        assert client.ask("echo as before") == "as before"


@pytest.fixture
def copied(tmp_path: Path, poold: Poold) -> Callable[..., tuple[Daemon, Path]]:
    """Return a function that starts a daemon from a copy of the package, which the test may change."""

    def start(*, before: Callable[[Path], object] = lambda installed: None, **arguments: object) -> tuple[Daemon, Path]:
        installed = install(tmp_path / "installed")
        before(installed)
        return poold(**arguments).start(environ=path_of(installed)), installed

    return start


def test_nobody_notices(poold: Poold) -> None:
    """Sessions go on in their processes, whoever comes meanwhile is served, and the counters go on: three times in a row."""
    daemon = poold(options={"log.level": "info", "pool.min_spare": 2}).start()
    master = daemon.master
    with ExitStack() as stack:
        held = [stack.enter_context(daemon.connect()) for _ in range(20)]
        pids = [client.ask("pid") for client in held]
        before = daemon.metrics()
        rows = {row["pid"]: row for row in daemon.children("worker")}
        with visitors(daemon) as outcomes:
            for number in range(1, 4):
                upgraded(daemon)
                assert [client.ask(f"echo {number}-{index}") for index, client in enumerate(held)] == [f"{number}-{i}" for i in range(20)]
                seen = len(outcomes)
                eventually(lambda: len(outcomes) > seen + 20, "visitors are served")  # noqa: B023 # called at once
        assert set(outcomes) == {"served"}
        assert [client.ask("pid") for client in held] == pids
        assert daemon.master == master
        after = daemon.metrics()
        for sample in ("process_start_time_seconds", "poold_children_max"):
            assert after[sample] == before[sample]
        assert (after["poold_generation"], after.total("poold_upgrades_total", result="applied")) == (4, 3)
        assert after["poold_sessions_active"] >= 20
        for row in daemon.children("worker"):
            if str(row["pid"]) in pids:
                old = rows[row["pid"]]
                assert [row[key] for key in ("session", "peer", "listener", "generation")] == [
                    old[key] for key in ("session", "peer", "listener", "generation")
                ]
        assert daemon.ask("status")["phase"] == "running"
    daemon.metric("poold_sessions_active", 0)
    daemon.metric("poold_sessions_ended_total", 20 + len(outcomes), cause="ok")
    assert daemon.metrics().total("poold_children_failed_total") == 0


def test_ends_after_an_upgrade(poold: Poold) -> None:
    """However a session ends after the upgrade, it is reaped with its status and ends for its cause."""
    daemon = poold().start()
    with ExitStack() as stack:
        good, bad, killed, gone = (stack.enter_context(daemon.connect()) for _ in range(4))
        pids = {name: int(client.ask("pid")) for name, client in (("good", good), ("bad", bad), ("killed", killed), ("gone", gone))}
        gone.ask("status still here")
        upgraded(daemon)
        assert "still here" in [row["status"] for row in daemon.children("worker")]
        good.finish()
        bad.send(b"exit 7\n")
        killed.send(b"signal 9\n")
        gone.send(b"flood\n")
        gone.socket.recv(1)
        gone.reset()
        for name, cause, status in (("good", "ok", 0), ("bad", "exit", 7), ("killed", "signal", -9), ("gone", "client_gone", 1)):
            assert daemon.event("session_ended", pid=pids[name], cause=cause)["status"] == status


def test_by_signal(poold: Poold) -> None:
    """SIGUSR2 does the same; the service manager is told that the service reloads and is ready again."""
    daemon = poold().start()
    with daemon.connect() as client:
        client.ask("pid")
        seen = len(daemon.notify.poll())
        daemon.kill(signal.SIGUSR2)
        daemon.event("upgrade_applied", generation=2)
        told = eventually(lambda: [m for m in daemon.notify.poll()[seen:] if "READY" in m] and daemon.notify.poll()[seen:])
        assert [next(iter(message)) for message in told if "RELOADING" in message or "READY" in message] == ["RELOADING", "READY"]
        assert client.ask("echo on") == "on"


def test_a_child_that_dies_meanwhile(poold: Poold) -> None:
    """A worker that ends between the two programs is reaped by the second one, with its status."""
    daemon = poold(options={"timeouts.kill": 30}).start()
    with daemon.connect() as client:
        pid = int(client.ask("pid"))
        for _ in range(5):
            mark = daemon.mark()
            daemon.kill(signal.SIGUSR2)
            # The new mold is ready: the exec is next.
            daemon.event("mold_ready", after=mark)
            daemon.event("upgrade_applied", after=mark)
        mark = daemon.mark()
        daemon.kill(signal.SIGUSR2)
        daemon.event("mold_ready", after=mark)
        os.kill(pid, signal.SIGKILL)
        daemon.event("upgrade_applied", after=mark)
        assert daemon.event("session_ended", pid=pid, cause="signal")["status"] == -9
    assert not alive(pid)


def test_nothing_leaks(poold: Poold, tmp_path: Path) -> None:
    """After each of many upgrades the master has the same kinds of descriptors, one thread, and no signal blocked."""
    unix = f'[[listener]]\naddress = "unix://{tmp_path}/u.sock"\n[[listener]]\naddress = "systemd://main"\nname = "main"\n'
    daemon = poold(options={"pool.min_spare": 1, "log.level": "info"}, settings=unix).start()

    def files() -> list[str]:
        return sorted(name.partition(":[")[0] for name in open_files(daemon.master).values())

    def settled() -> bool:
        kinds = [row["kind"] for row in daemon.children() if row["state"] in ("spare", "serving")]
        return sorted(kinds) == ["exporter", "logger", "mold", "worker"] and len(daemon.children()) == 4

    eventually(settled)
    before = files()
    masks = signal_masks(daemon.master)
    for _ in range(8):
        upgraded(daemon)
        eventually(settled)
        assert files() == before
        assert len(os.listdir(f"/proc/{daemon.master}/task")) == 1
        assert signal_masks(daemon.master) == masks


def test_everything_that_listens_stays(poold: Poold, tmp_path: Path) -> None:
    """TCP, unix and passed listeners, the control socket and the metrics are the same sockets, and go away at the end."""
    port, path = free_port(), tmp_path / "u.sock"
    text = (
        f'[[listener]]\naddress = "tcp://127.0.0.1:{port}"\nname = "tcp"\n[[listener]]\naddress = "unix://{path}"\n'
        '[[listener]]\naddress = "systemd://main"\nname = "main"\n'
    )
    daemon = poold(settings=text).start()
    inode, control = path.stat().st_ino, daemon.control.stat().st_ino
    upgraded(daemon)
    assert (path.stat().st_ino, daemon.control.stat().st_ino) == (inode, control)
    for address in (daemon.address, ("127.0.0.1", port), str(path)):
        with Client(address) as client:
            assert json.loads(client.ask("facts"))["listener"] in ("tcp", f"unix://{path}", "main")
    assert daemon.stop() == 0
    assert not path.exists()


def test_new_code_and_settings_are_live(copied: Callable[..., tuple[Daemon, Path]]) -> None:
    """The version on disk is what runs afterwards, with the settings as they are in the file."""
    daemon, installed = copied()
    with daemon.connect() as old:
        old.ask("pid")
        init = installed / "__init__.py"
        init.write_text(init.read_text().replace(f'__version__ = "{package.__version__}"', '__version__ = "99.9.9"'))
        daemon.write(options={"pool.max_children": 9})
        done = upgrade(daemon)
        assert done.returncode == 0, done.stderr
        assert f"{package.__version__} → 99.9.9, 1 sessions go on" in done.stdout
        assert daemon.ask("status")["version"] == "99.9.9"
        daemon.metric("poold_build_info", 1, version="99.9.9")
        assert daemon.ask("status")["children_max"] == 9
        assert old.ask("echo old") == "old"
        with daemon.connect() as new:
            assert new.ask("echo new") == "new"
    assert daemon.events("protocol_error") == []


def test_a_link_that_is_moved(poold: Poold, tmp_path: Path) -> None:
    """Where poold runs from behind a link, it is what the link leads to by then that takes over: forth and back."""
    link, version = tmp_path / "current", package.__version__
    for number, name in enumerate(("old", "new")):
        installed = install(tmp_path / name)
        mend(installed / "__init__.py", f'__version__ = "{version}"', f'__version__ = "{number}.0"')
    link.symlink_to("old")
    daemon = poold(options={"pool.min_spare": 1}).start(environ=path_of(link / "poold"))
    with daemon.connect() as client:
        pid = client.ask("pid")
        for name, change in (("new", "0.0 → 1.0"), ("old", "1.0 → 0.0"), ("new", "0.0 → 1.0")):
            link.unlink()
            link.symlink_to(name)
            done = upgrade(daemon)
            assert change in done.stdout, done
            assert client.ask("pid") == pid
            with daemon.connect() as later:
                assert later.ask("echo served") == "served"


def test_mold_that_dies_before_the_upgrade(copied: Callable[..., tuple[Daemon, Path]]) -> None:
    """Once other code is installed, a mold that dies is not replaced by one of the other version; the upgrade that is due brings one."""
    daemon, installed = copied(options={"pool.min_spare": 0, "pool.max_spare": 0})
    mend(installed / "__init__.py", f'__version__ = "{package.__version__}"', '__version__ = "99.9.9"')
    with daemon.connect() as client:
        assert client.ask("echo before") == "before"
        os.kill(daemon.children("mold")[0]["pid"], signal.SIGKILL)
        hint = 'run "poold upgrade"'
        eventually(lambda: [each for each in daemon.events("mold_failed") if hint in each["reason"]], "the operator is told")
        assert client.ask("echo on") == "on"
        assert upgrade(daemon).returncode == 0
        with daemon.connect() as later:
            assert later.ask("echo served") == "served"
        assert client.ask("echo on") == "on"


def test_broken_settings(poold: Poold) -> None:
    """Settings that would not do refuse the upgrade, with every problem."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    daemon.write(options={"pool.max_children": -1, "pool.min_spare": 1})
    refused(daemon, "pool.max_children")


def test_settings_that_a_reload_refused(poold: Poold) -> None:
    """An upgrade reads the settings as a reload does: afterwards those of the file are in force, and that is what is shown."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    daemon.write(options={"pool.max_children": -1})
    assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 1
    daemon.metric("poold_config_last_reload_successful", 0)
    before = daemon.metrics()["poold_config_last_reload_success_timestamp_seconds"]
    daemon.write(options={"pool.max_children": 99})
    upgraded(daemon)
    daemon.metric("poold_config_last_reload_successful", 1)
    daemon.metric("poold_children_max", 99)
    assert daemon.metrics()["poold_config_last_reload_success_timestamp_seconds"] > before


def test_broken_handler(poold: Poold) -> None:
    """A handler that the new program could not import refuses the upgrade."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    daemon.write(options={"server.handler": "nowhere:serve"})
    refused(daemon, "nowhere")


def test_other_sockets(poold: Poold) -> None:
    """An upgrade opens and closes no socket: what would need one is a reload's."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    daemon.write(
        options={"pool.min_spare": 1, "metrics.listen": f"tcp://127.0.0.1:{free_port()}"},
        settings=f'[[listener]]\naddress = "tcp://127.0.0.1:{free_port()}"\n',
    )
    refused(daemon, "poold reload opens it", "systemd://main: is open", "metrics.listen")


@pytest.mark.parametrize("part", ["master/main.py", "settings/judge.py", "mold/main.py", "__init__.py", "master/successor.py"])
def test_broken_package(copied: Callable[..., tuple[Daemon, Path]], part: str) -> None:
    """Code that cannot be loaded, whichever part it is, refuses the upgrade."""
    daemon, installed = copied(options={"pool.min_spare": 1})
    # Whatever poold starts from now on, its exporter too, is started from broken code.
    daemon.event("exporter_ready")
    (installed / part).write_text("import a_dependency_that_is_missing\n")
    # The commands that look are of the code that is installed for the tests.
    refused(daemon)


def test_missing_interpreter(poold: Poold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its interpreter the upgrade is refused, and the service goes on."""
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.symlink_to(Path(sys.executable).resolve())
    for name in ("lib", "pyvenv.cfg"):
        (environment / name).symlink_to(Path(sys.prefix) / name)
    monkeypatch.setattr(sys, "executable", str(python))
    daemon = poold(options={"pool.min_spare": 1}).start()
    python.unlink()
    monkeypatch.undo()
    done = upgrade(daemon)
    assert (done.returncode, "cannot be tried" in done.stderr) == (1, True)
    # The service goes on with what is loaded; its own next child needs the interpreter.
    python.symlink_to(Path(sys.executable).resolve())
    daemon.metric("poold_upgrades_total", 1, result="refused")
    with daemon.connect() as client:
        assert client.ask("echo on") == "on"


@needs_strace
@pytest.mark.parametrize("error", ["ENOENT", "EACCES", "ENOMEM", "E2BIG", "ETXTBSY"])
def test_exec_that_fails(poold: Poold, error: str) -> None:
    """An exec that fails at the last moment is undone: sessions, newcomers, signals and descriptors are as before."""
    daemon = poold(options={"pool.min_spare": 1}).start(laws=False)
    with daemon.connect() as client:
        client.ask("pid")
        daemon.metric("poold_children", 1, kind="worker", state="spare")
        before, masks = len(open_files(daemon.master)), signal_masks(daemon.master)
        with traced(daemon.folder, daemon.master, f"inject=execve:error={error}"):
            done = upgrade(daemon)
            # The quiet moment that a tracer is to be left in: the new mold has been reaped.
            daemon.metric("poold_children", 1, kind="mold")
        assert (done.returncode, "undone" in done.stderr) == (1, True)
        daemon.event("upgrade_undone")
        daemon.metric("poold_upgrades_total", 1, result="undone")
        assert client.ask("echo on") == "on"
        with daemon.connect() as later:
            assert later.ask("echo in") == "in"
        daemon.metric("poold_sessions_active", 1)
        daemon.metric("poold_children", 1, kind="worker", state="spare")
        eventually(lambda: len(open_files(daemon.master)) == before, "the baseline of descriptors")
        assert signal_masks(daemon.master) == masks
        assert inheritable(daemon.master) == {}
        upgraded(daemon)
        assert client.ask("echo again") == "again"


def test_a_session_that_is_not_settled(poold: Poold) -> None:
    """A connection that no worker has taken when the upgrade wants quiet is waited for: it is served, before or after."""
    daemon = poold(options={"pool.min_spare": 1, "pool.max_children": 2}).start()
    daemon.metric("poold_children", 1, kind="worker", state="spare")
    [spare] = [row["pid"] for row in daemon.children("worker")]
    os.kill(spare, signal.SIGSTOP)
    with daemon.connect() as client:
        client.send(b"echo at last\n")
        daemon.event("session_started")
        daemon.kill(signal.SIGUSR2)
        # The worker is given up after two seconds of silence, the upgrade after two seconds without quiet.
        eventually(lambda: daemon.events("upgrade_applied") or daemon.events("upgrade_undone"), "the upgrade ends")
        assert client.line() == "at last"
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def trial_of(daemon: Daemon) -> int:
    """Return the pid of the trial that runs."""

    def found() -> list[int]:
        trials = []
        for pid in children_of(daemon.master):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                trials += [pid] if "trial" in title(pid) else []
        return trials

    return eventually(found, "a trial")[0]


def test_busy(poold: Poold) -> None:
    """While an upgrade runs another one and a reload are told so, and a SIGHUP is remembered."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    daemon.kill(signal.SIGUSR2)
    with frozen(trial_of(daemon)):
        assert "busy: another upgrade is running" in upgrade(daemon).stderr
        done = daemon.cli("reload", "--socket", str(daemon.control))
        assert (done.returncode, "busy: an upgrade is running" in done.stderr) == (1, True)
        daemon.kill(signal.SIGHUP)
        daemon.kill(signal.SIGUSR2)
        daemon.metric("poold_upgrades_total", 2, result="busy")
    daemon.event("upgrade_applied", generation=2)
    daemon.event("reload_applied", generation=3)
    assert daemon.metrics().total("poold_reloads_total", result="busy") == 1


@pytest.mark.parametrize("dry", [False, True])
def test_an_upgrade_waits_for_a_reload(poold: Poold, dry: bool) -> None:
    """An upgrade that is asked for while a reload runs, a dry one too, waits for its end; one more is told that one waits."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    reloading = Client(str(daemon.control))
    reloading.send(json.dumps({"verb": "reload", "dry_run": dry}).encode() + b"\n")
    with frozen(trial_of(daemon)):
        asking = asked_for_an_upgrade(daemon)
        daemon.event("upgrade_waits")
        assert "busy: another upgrade waits" in upgrade(daemon).stderr
        daemon.kill(signal.SIGUSR2)
        daemon.metric("poold_upgrades_total", 2, result="busy")
        assert daemon.events("upgrade_started") == []
    with reloading, asking:
        assert json.loads(reloading.line())["ok"]
        answer = json.loads(asking.line())
    assert (answer["ok"], answer["generation"]) == (True, 2 if dry else 3)
    daemon.event("upgrade_applied")
    assert len(daemon.events("upgrade_applied")) == 1


def test_an_upgrade_by_signal_waits_for_a_reload(poold: Poold) -> None:
    """A USR2 that comes while a reload runs is acted on at its end, also when it is refused; a HUP that came too is, after that."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    daemon.write(options={"pool.max_children": -1})
    daemon.kill(signal.SIGHUP)
    with frozen(trial_of(daemon)):
        daemon.kill(signal.SIGUSR2)
        daemon.event("upgrade_waits")
        daemon.kill(signal.SIGHUP)
        daemon.write(options={"pool.min_spare": 1})
    daemon.event("upgrade_applied", generation=2)
    daemon.event("reload_applied", generation=3)
    assert len(daemon.events("reload_refused")) == 1


def test_reloads_that_keep_coming_do_not_keep_an_upgrade_out(poold: Poold) -> None:
    """An upgrade goes before the reload that a further HUP has asked for, so that HUPs all the time do not hold it up."""
    daemon = poold(options={"pool.min_spare": 1, "log.level": "info"}).start()
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.wait(0.02):
            daemon.kill(signal.SIGHUP)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        daemon.event("reload_applied")
        upgraded(daemon)
    finally:
        stop.set()
        asking.join()
    daemon.event("upgrade_applied")
    assert len(daemon.events("upgrade_applied")) == 1


def test_stop_while_an_upgrade_waits(poold: Poold) -> None:
    """Whoever waits with an upgrade for the end of a reload is told when poold is stopped instead."""
    daemon = poold(options={"pool.min_spare": 1}).start(laws=False)
    daemon.kill(signal.SIGHUP)
    with frozen(trial_of(daemon)), asked_for_an_upgrade(daemon) as asking:
        daemon.event("upgrade_waits")
        daemon.kill(signal.SIGTERM)
        assert json.loads(asking.line()) == {"ok": False, "error": "poold is stopping"}
    assert daemon.wait() == 0
    assert daemon.events("upgrade_started") == []


def test_stop_during_an_upgrade(poold: Poold) -> None:
    """A TERM that comes between the two programs is acted on by the second one."""
    daemon = poold().start(laws=False)
    mark = daemon.mark()
    daemon.kill(signal.SIGUSR2)
    daemon.event("mold_ready", after=mark)
    daemon.kill(signal.SIGTERM)
    assert daemon.wait() == 0
    assert daemon.events("draining")


def test_reload_after_an_upgrade(poold: Poold) -> None:
    """What was taken over can be reloaded, listeners and metrics included."""
    daemon = poold(options={"pool.min_spare": 1}).start()
    with daemon.connect() as client:
        client.ask("pid")
        upgraded(daemon)
        port = free_port()
        daemon.metrics_port = free_port()
        daemon.write(
            options={"pool.min_spare": 1},
            settings=f'[[listener]]\naddress = "tcp://127.0.0.1:{port}"\n[[listener]]\naddress = "systemd://main"\nname = "main"\n',
        )
        done = daemon.cli("reload", "--socket", str(daemon.control))
        assert done.returncode == 0, done.stderr
        with Client(("127.0.0.1", port)) as other:
            assert other.ask("echo new") == "new"
        upgraded(daemon)
        with Client(("127.0.0.1", port)) as other:
            assert other.ask("echo kept") == "kept"
        assert client.ask("echo old") == "old"


def test_workers_of_many_sessions(poold: Poold) -> None:
    """A worker that would serve on goes on with its session and leaves after it: its code is the old one."""
    daemon = poold(options={"pool.connections_per_child": 0, "pool.min_spare": 1}).start()
    with daemon.connect() as client:
        pid = int(client.ask("pid"))
        upgraded(daemon)
        assert int(client.ask("pid")) == pid
        client.finish()
        daemon.event("session_ended", pid=pid, cause="ok")
    daemon.event("child_reaped", pid=pid, status=0)
    with daemon.connect() as client:
        assert int(client.ask("pid")) != pid


def test_process_is_as_it_was(poold: Poold) -> None:
    """Environment, limits, umask, working directory and title are those of the start, for the master and for its workers."""
    daemon = poold(options={"pool.min_spare": 1}).start()

    def facts() -> dict[str, object]:
        with daemon.connect() as client:
            said = json.loads(client.ask("facts"))
        daemon.metric("poold_sessions_active", 0)
        status = dict(line.split(":\t", 1) for line in said["status"].splitlines() if ":\t" in line)
        master = Path(f"/proc/{daemon.master}")
        own = dict(line.split(":\t", 1) for line in (master / "status").read_text().splitlines() if ":\t" in line)
        keys = ("environ", "umask", "cwd", "fds", "sid", "uid", "gid", "modules", "options")
        worker = {key: said[key] for key in keys if key != "sid"}
        return {
            "worker": worker,
            "signals": [status[key] for key in ("SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "CapEff")],
            "limits": (master / "limits").read_text(),
            "master": [own[key] for key in ("Umask", "SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "CapEff", "Threads")],
            "cwd": os.readlink(master / "cwd"),
            "title": title(daemon.master),
        }

    before = facts()
    upgraded(daemon)
    assert facts() == before


@pytest.mark.parametrize(
    ("fault", "status"),
    [("raise OSError('no luck')", 70), ("os._exit(3)", 3), ("os.kill(os.getpid(), 11)", -11), ("while True: pass", -9)],
)
def test_a_new_program_that_fails(copied: Callable[..., tuple[Daemon, Path]], fault: str, status: int) -> None:
    """A program that fails after the exec ends, also when it hangs, and so does every child: the service manager starts another."""

    def impatient(installed: Path) -> None:
        if status == -9:
            mend(installed / "master" / "guard.py", "SECONDS = 20", "SECONDS = 3")

    own = f'[[listener]]\naddress = "tcp://127.0.0.1:{free_port()}"\n[[listener]]\naddress = "systemd://main"\nname = "main"\n'
    daemon, installed = copied(before=impatient, settings=own)
    if daemon.keeper is not None:
        daemon.keeper.close()
    mend(installed / "master" / "upgrade" / "takeover.py", "    tally.resume(", in_the_successor(fault) + "    tally.resume(")
    before = children_of(os.getpid())
    with daemon.connect() as client:
        client.ask("pid")
        # It is closed without an answer.
        assert upgrade(daemon).returncode == 3
        assert daemon.wait() == status
        # Whom the master has left fell to this process, as they would to init.
        take_orphans(before)
        assert client.rest() == b""
    assert status != 70 or "no luck" in daemon.event("upgrade_failed")["reason"]
    assert status != -9 or daemon.event("upgrade_hangs")
    # The service manager keeps the listeners for the next start.
    assert [message for message in daemon.notify.poll() if "FDSTOREREMOVE" in message] == []
    daemon.control.unlink(missing_ok=True)


def test_drain_and_upgrade(poold: Poold) -> None:
    """While poold stops there is no upgrade."""
    daemon = poold(options={"timeouts.drain": 60}).start()
    with daemon.connect() as client:
        client.ask("pid")
        daemon.kill(signal.SIGTERM)
        daemon.event("draining")
        daemon.kill(signal.SIGUSR2)
        daemon.event("upgrade_refused", reason="stopping")
        assert upgrade(daemon).returncode == 1
        client.finish()
    assert daemon.wait() == 0
    assert children_of(daemon.pid) == []

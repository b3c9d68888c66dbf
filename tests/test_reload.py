"""Reload: what is good is applied in one step, what is not changes nothing, and who is being served notices neither."""

import os
import re
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.childkit import mold_of
from tests.procfs import frozen, open_files
from tests.support import Client, Poold, free_port, toml
from tests.waiting import eventually
from tests.wirekit import visitors


def test_cap_goes_up_and_down(poold: Poold) -> None:
    """The cap follows the settings; sessions over a lowered cap go on, and newcomers wait until there is room."""
    daemon = poold(options={"pool.max_children": 3, "pool.min_spare": 1}).start()
    clients = [daemon.connect() for _ in range(3)]
    pids = [client.ask("pid") for client in clients]
    daemon.write(options={"pool.max_children": 1, "pool.min_spare": 1})
    told = daemon.cli("reload", "-c", str(daemon.config))
    assert told.returncode == 0, told.stderr
    assert "pool.max_children: 3 → 1" in told.stdout
    assert "2 sessions over the new cap" in told.stdout
    daemon.metric("poold_children_max", 1)
    with daemon.connect() as waiting:
        waiting.send(b"echo at last\n")
        assert [client.ask("pid") for client in clients] == pids
        for client in clients:
            client.finish()
            client.close()
        assert waiting.line() == "at last"
    daemon.write(options={"pool.max_children": 5, "pool.min_spare": 4})
    assert daemon.cli("reload", "-c", str(daemon.config)).returncode == 0
    daemon.metric("poold_children", 4, kind="worker", state="spare")
    assert daemon.metrics()["poold_generation"] == 3


def test_new_handler_code_is_live(poold: Poold, tmp_path: Path) -> None:
    """After a SIGHUP new sessions run new code, old ones their own, and spares of the old settings are gone."""
    code = "def serve(connection):\n    for line in connection.reader:\n        connection.socket.sendall(b'VERSION ' + line)\n"
    module = tmp_path / "changing.py"
    module.write_text(code.replace("VERSION", "one"))
    daemon = poold(options={"server.handler": "changing:serve", "server.path": [str(tmp_path)], "pool.min_spare": 3}).start()
    daemon.metric("poold_children", 3, kind="worker", state="spare")
    old = {row["pid"] for row in daemon.children("worker")}
    with daemon.connect() as before:
        assert before.ask("a") == "one a"
        # Another size, because Python tells stale bytecode by size and second.
        module.write_text(code.replace("VERSION", "number two"))
        daemon.kill(signal.SIGHUP)
        assert daemon.event("reload_applied")["generation"] == 2
        with daemon.connect() as after:
            assert after.ask("b") == "number two b"
        assert before.ask("c") == "one c"
        daemon.metric("poold_children", 3, kind="worker", state="spare")
        spares = {row["pid"] for row in daemon.children("worker") if row["state"] == "spare"}
        assert not spares & old
        assert len(daemon.children("mold")) == 1
    metrics = daemon.metrics()
    assert metrics.total("poold_children_failed_total") == 0
    assert metrics.total("poold_reloads_total", result="applied") == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("[pool\n", "line 1"),
        ("[pool]\nmax_childern = 3\n", "line 2: pool.max_childern: unknown key; did you mean max_children?"),
        ("[pool]\nmax_children = true\n[timeouts]\nkill = -1\n", "line 4: timeouts.kill"),
        ('[server]\nhandler = "poold.handlers.echo:serve"\nuser = "no-such-user"\n', "no-such-user"),
        ('[[listener]]\naddress = "tcp://192.0.2.77:7"\n', "cannot listen on tcp://192.0.2.77:7"),
        ('[server]\nhandler = "nowhere:serve"\n', "No module named 'nowhere'"),
        ('[control]\nsocket = "/run/other.sock"\n', "cannot be changed by a reload"),
    ],
)
def test_bad_settings_change_nothing(poold: Poold, settings: str, words: str) -> None:
    """A reload that cannot be applied is refused with the reason, and everything is as it was: sessions, spares, descriptors."""
    daemon = poold(options={"pool.min_spare": 2}).start()
    daemon.metric("poold_children", 2, kind="worker", state="spare")
    with daemon.connect() as client:
        pid = client.ask("pid")
        daemon.metric("poold_children", 2, kind="worker", state="spare")
        spares = {row["pid"] for row in daemon.children("worker")}
        files = sorted(open_files(daemon.master).values())
        good = daemon.config.read_text()
        # What the test itself needs stays as it is, unless it is what the settings are about.
        kept = {
            "control": f'[control]\nsocket = "{daemon.control}"\n',
            "metrics": f'[metrics]\nlisten = "tcp://127.0.0.1:{daemon.metrics_port}"\n',
            "server": '[server]\nhandler = "poold.handlers.echo:serve"\n',
        }
        daemon.config.write_text(settings + "".join(text for table, text in kept.items() if f"[{table}]" not in settings))
        told = daemon.cli("reload", "--socket", str(daemon.control))
        assert told.returncode == 1
        assert words in told.stderr
        assert daemon.metrics()["poold_config_last_reload_successful"] == 0
        daemon.metric("poold_reloads_total", 1, result="refused")
        assert client.ask("pid") == pid
        assert {row["pid"] for row in daemon.children("worker")} == spares
        eventually(lambda: sorted(open_files(daemon.master).values()) == files, "the descriptors are those from before")
        assert daemon.metrics()["poold_generation"] == 1
        daemon.config.write_text(good)
        assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
        assert daemon.metrics()["poold_config_last_reload_successful"] == 1


@pytest.mark.parametrize("what", ["missing", "directory", "fifo", "huge"])
def test_settings_that_cannot_be_read(poold: Poold, what: str) -> None:
    """A settings file that is not one is refused, and the master never waits for it."""
    daemon = poold().start()
    good = daemon.config.read_text()
    daemon.config.unlink()
    if what == "directory":
        daemon.config.mkdir()
    elif what == "fifo":
        os.mkfifo(daemon.config)
    elif what == "huge":
        daemon.config.write_text(good + "# \n" * 600_000)
    assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 1
    daemon.kill(signal.SIGHUP)
    daemon.metric("poold_reloads_total", 2, result="refused")
    with daemon.connect() as client:
        assert client.ask("echo untouched") == "untouched"


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        ("raise", "not in the mood"),
        ("exit", "SystemExit"),
        ("_exit", "ended with status"),
        ("hang", "took longer"),
        ("fork", "forked and left"),
    ],
)
def test_handler_that_fails_at_import(poold: Poold, mood: str, words: str) -> None:
    """A handler that fails, exits, hangs or forks at import never gets in; the old one goes on serving."""
    daemon = poold()
    file = daemon.folder / "mood"
    options = {"server.handler": "moody:serve", "server.environment": {"MOOD": str(file)}, "timeouts.import": 2}
    daemon.write(options=options)
    daemon.start()
    with daemon.connect() as client:
        client.ask("hello")
        file.write_text(mood)
        told = daemon.cli("reload", "--socket", str(daemon.control))
        assert told.returncode == 1
        assert words in told.stderr
        assert client.ask("as before").endswith("as before")
    with daemon.connect() as client:
        assert client.ask("new").endswith("new")
    assert len(daemon.children("mold")) == 1


def test_no_spare_of_older_settings_gets_a_connection(poold: Poold) -> None:
    """Whoever connects after `poold reload` has said that it is applied is served by the new code, whatever spares there were."""
    module = "VERSION = {}\n\ndef serve(connection):\n    connection.socket.sendall(b'%d\\n' % VERSION)\n"
    daemon = poold()
    (daemon.folder / "versioned.py").write_text(module.format(0))
    daemon.write(options={"server.handler": "versioned:serve", "server.path": [str(daemon.folder)], "pool.min_spare": 8})
    daemon.start()
    for version in range(1, 11):
        (daemon.folder / "versioned.py").write_text(module.format(version) + "# longer\n" * version)
        assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
        for _ in range(10):
            with daemon.connect() as client:
                assert client.line() == str(version)


def test_settings_that_others_may_write(poold: Poold) -> None:
    """A file that was named is read whoever may write it, with a warning that says so: who named it has the say."""
    daemon = poold().start()
    daemon.config.chmod(0o666)
    assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
    daemon.event("reload_applied")
    assert [event for event in daemon.events("settings_warning") if "others may write" in event["message"]]


def test_threads_at_import_come_in_through_the_fallback(poold: Poold) -> None:
    """A reload to a handler that starts threads is applied, with a warning, and its workers are the master's children."""
    daemon = poold().start()
    daemon.write(options={"server.handler": "forker:serve"})
    assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
    assert daemon.event("mold_has_threads")
    with daemon.connect() as client:
        assert f'"ppid": {daemon.master}' in client.line()


def test_listeners_come_and_go(poold: Poold, tmp_path: Path) -> None:
    """A listener that stays keeps its socket, a new one opens, a removed one is closed, and its file goes with it."""
    port = free_port()
    first = f'[[listener]]\naddress = "systemd://main"\nname = "main"\n[[listener]]\naddress = "unix://{tmp_path}/s"\n'
    daemon = poold(settings=first).start()
    inode = os.fstat(daemon.listener.fileno()).st_ino
    with Client(str(tmp_path / "s")) as old, daemon.connect() as kept:
        old.ask("pid")
        kept.ask("pid")
        second = (
            f'[[listener]]\naddress = "systemd://main"\nname = "renamed"\n[[listener]]\naddress = "tcp://127.0.0.1:{port}"\nbacklog = 5\n'
        )
        daemon.write(settings=second, options={})
        told = daemon.cli("reload", "--dry-run", "--socket", str(daemon.control))
        assert f"listener tcp://127.0.0.1:{port} opens" in told.stdout
        assert f"listener unix://{tmp_path}/s closes" in told.stdout
        assert "listener systemd://main stays" in told.stdout
        assert daemon.metrics()["poold_generation"] == 1
        assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
        with Client(("127.0.0.1", port)) as new:
            assert new.ask("echo opened") == "opened"
        eventually(lambda: not (tmp_path / "s").exists(), "the socket file goes")
        assert old.ask("echo still served") == "still served"
        assert kept.ask("echo so am I") == "so am I"
        assert f"socket:[{inode}]" in open_files(daemon.master).values()
        with daemon.connect() as client:
            client.ask("pid")
    accepted = {name: daemon.metrics().total("poold_connections_accepted_total", listener=name) for name in ("main", "renamed")}
    assert accepted == {"main": 1, "renamed": 1}


def test_queue_of_a_removed_listener_is_served(poold: Poold) -> None:
    """Clients that wait in the queue of a listener that a reload removes are served before it is closed."""
    port = free_port()
    both = f'[[listener]]\naddress = "systemd://main"\n[[listener]]\naddress = "tcp://127.0.0.1:{port}"\n'
    daemon = poold(options={"pool.max_children": 1, "pool.min_spare": 0, "pool.max_spare": 0}, settings=both).start()
    with daemon.connect() as holder:
        holder.ask("pid")
        queued = [Client(("127.0.0.1", port)) for _ in range(5)]
        for client in queued:
            client.send(b"echo served\n")
        daemon.write(
            settings='[[listener]]\naddress = "systemd://main"\n',
            options={"pool.max_children": 1, "pool.min_spare": 0, "pool.max_spare": 0},
        )
        assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
    for client in queued:
        assert client.line() == "served"
        client.close()
    eventually(lambda: _refused(port), "the removed listener is closed")
    daemon.metric("poold_sessions_active", 0)
    metrics = daemon.metrics()
    # The probes for the closed listener may have been served too.
    assert metrics.total("poold_sessions_ended_total", cause="ok") == metrics.total("poold_connections_accepted_total") >= 6


def _refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_metrics_address_moves_without_a_refused_scrape(poold: Poold) -> None:
    """While the metrics address moves, each scrape of the address that is in force is answered."""
    daemon = poold().start()
    for _ in range(4):
        old, daemon.metrics_port = daemon.metrics_port, free_port()
        daemon.write(options={})
        done = threading.Event()
        failures: list[str] = []

        def scrape(old: int = old, done: threading.Event = done, failures: list[str] = failures) -> None:
            while not done.is_set():
                if all(_refused(port) for port in (old, daemon.metrics_port)):
                    failures.append("neither address answers")

        scraper = threading.Thread(target=scrape)
        scraper.start()
        told = daemon.cli("reload", "--socket", str(daemon.control))
        assert told.returncode == 0, told.stderr
        assert daemon.metrics()["poold_accepting"] == 1
        done.set()
        scraper.join()
        assert failures == []
        assert _refused(old)
    daemon.metric("poold_children", 1, kind="exporter")


def test_one_runs_one_is_latched_and_others_hear_busy(poold: Poold) -> None:
    """While a reload runs, a second `poold reload` hears busy, and any number of SIGHUPs make one more reload."""
    daemon = poold()
    file = daemon.folder / "mood"
    daemon.write(options={"server.handler": "moody:serve", "server.environment": {"MOOD": str(file)}, "timeouts.import": 3})
    daemon.start()
    file.write_text("hang")
    daemon.kill(signal.SIGHUP)
    eventually(lambda: daemon.metrics()["poold_mold_starts_total"] == 2)
    told = daemon.cli("reload", "--socket", str(daemon.control))
    assert (told.returncode, "busy" in told.stderr) == (1, True)
    for _ in range(50):
        daemon.kill(signal.SIGHUP)
    file.write_text("good")
    daemon.metric("poold_reloads_total", 1, result="applied")
    metrics = daemon.metrics()
    assert metrics.total("poold_reloads_total", result="busy") == 1
    assert metrics.total("poold_reloads_total", result="refused") == 1
    assert metrics["poold_generation"] == 2


def test_reload_goes_on_when_its_requester_leaves(poold: Poold) -> None:
    """A `poold reload` that is interrupted does not interrupt the reload."""
    daemon = poold().start()
    daemon.write(options={"pool.max_children": 9})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as requester:
        requester.connect(str(daemon.control))
        requester.sendall(b'{"verb": "reload"}\n')
    daemon.metric("poold_children_max", 9)


def test_a_lost_socket_file_with_a_queue(poold: Poold, tmp_path: Path) -> None:
    """A listener that was made anew, while somebody still waits in the queue of the one that was lost, is not made anew again."""
    path = tmp_path / "own.sock"
    daemon = poold(options={"pool.max_children": 1}, settings=f'[[listener]]\naddress = "unix://{path}"\nname = "own"\n').start()
    with Client(str(path)) as held, Client(str(path)) as queued:
        assert held.ask("echo held") == "held"
        queued.send(b"echo at last\n")
        path.unlink()
        for _ in range(2):
            told = daemon.cli("reload", "--socket", str(daemon.control))
            assert told.returncode == 0, told.stderr
            assert path.is_socket()
        held.finish()
        assert queued.line() == "at last"
    with Client(str(path)) as client:
        assert client.ask("echo found") == "found"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_stop_beside_the_last_word(poold: Poold, number: int) -> None:
    """A reload or an upgrade whose mold becomes ready beside a TERM is refused, and the drain is that of the settings in force."""
    daemon = poold()
    file = daemon.folder / "mood"
    options = {"server.handler": "moody:serve", "server.environment": {"MOOD": str(file)}, "timeouts.drain": 3600}
    daemon.write(options=options)
    daemon.start()
    before = mold_of(daemon)
    file.write_text("wait")
    if number == signal.SIGHUP:
        more = f'[[listener]]\naddress = "systemd://main"\nname = "main"\n[[listener]]\naddress = "tcp://127.0.0.1:{free_port()}"\n'
        daemon.write(options=options, settings=more)
    daemon.kill(number)
    mold = eventually(lambda: next((row["pid"] for row in daemon.children("mold") if row["pid"] != before), 0), "another mold")
    with frozen(daemon.master):
        file.write_text("good")
        eventually(lambda: "skb" in Path(f"/proc/{mold}/wchan").read_text(), "a mold that waits for orders")
        daemon.kill(signal.SIGTERM)
    assert daemon.wait() == 0
    assert not daemon.events("reload_applied")
    assert not daemon.events("giving_up")
    assert daemon.events("drain_overdue") == []
    [refused] = daemon.events("reload_refused" if number == signal.SIGHUP else "upgrade_refused")
    assert refused["reason"] == "poold is stopping"


def test_no_reload_while_stopping(poold: Poold) -> None:
    """A SIGHUP during a drain is ignored, with a line."""
    daemon = poold(options={"timeouts.drain": 60}).start()
    with daemon.connect() as client:
        client.ask("pid")
        daemon.kill(signal.SIGTERM)
        daemon.event("draining")
        daemon.kill(signal.SIGHUP)
        daemon.event("reload_refused")
        assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 1
        client.finish()
    assert daemon.wait() == 0
    assert daemon.events("session_ended", cause="ok")


def test_storm_of_reloads_under_load(poold: Poold) -> None:
    """Forty reloads while clients come and sessions are held: nobody is refused, nobody is lost, nothing is left behind."""
    daemon = poold(options={"log.level": "info", "pool.min_spare": 4}).start()
    daemon.metric("poold_children", 4, kind="worker", state="spare")
    before = len(open_files(daemon.master))
    held = [daemon.connect() for _ in range(20)]
    pids = [client.ask("pid") for client in held]
    with visitors(daemon, 4) as outcomes:
        for number in range(1, 41):
            daemon.kill(signal.SIGHUP)
            daemon.metric("poold_reloads_total", number, result="applied")
    assert set(outcomes) == {"served"}
    assert len(outcomes) > 100
    assert [client.ask("pid") for client in held] == pids
    for client in held:
        client.close()
    daemon.metric("poold_sessions_active", 0)
    daemon.metric("poold_children", 4, kind="worker")
    eventually(lambda: len(open_files(daemon.master)) == before, "the baseline of descriptors")
    metrics = daemon.metrics()
    assert metrics["poold_generation"] == 41
    assert metrics.total("poold_connections_refused_total") == 0
    assert metrics.total("poold_children_failed_total") == 0
    assert len(os.listdir(f"/proc/{daemon.master}/task")) == 1


def test_secrets_are_not_told(poold: Poold) -> None:
    """Changes of options and variables are named and not shown."""
    daemon = poold(options={"server.options": {"password": "old-hunter2"}}).start()
    daemon.write(options={"server.options": {"password": "new-hunter2"}})
    told = daemon.cli("reload", "--socket", str(daemon.control))
    assert "server.options" in told.stdout
    assert not re.search("hunter2", told.stdout + daemon.log.read_text())
    assert toml({"a": 1}) == "{ a = 1 }"

"""What a poold that runs, or is to run, makes of its settings: what is refused, what is warned of, what is known before it is tried."""

import contextlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.childkit import mold_of
from tests.faultkit import out_of_files
from tests.needs import needs_root
from tests.procfs import frozen
from tests.support import Daemon, Poold
from tests.waiting import eventually

WARNING = 'the handler runs as root: name a user under [server], such as user = "nobody", or write user = "root" if that is meant'
NAMELESS = "server.handler: must be written, or command in its place"


def lowered(hard: int) -> str:
    """Return what a process does first in order to have this hard limit of open files."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({hard}, {hard}))"


# A file that names nothing to serve.


@pytest.mark.parametrize(
    ("text", "line"), [("", ""), ("# all gone\n", ""), ("[pool]\nmax_children = 3\n", ""), ("\n[server]\npath = ['.']\n", "line 2: ")]
)
def test_file_that_names_nothing_to_serve(poold: Poold, text: str, line: str) -> None:
    """A file without a handler or a command is refused by check, start, reload, dry run and upgrade, which say what to write."""
    daemon = poold()
    good = daemon.config.read_text()
    daemon.config.write_text(text)
    said = f"{daemon.config}: {line}{NAMELESS}"
    checked = daemon.cli("check")
    assert (checked.returncode, said in checked.stderr) == (1, True)
    daemon.start(wait=False)
    assert daemon.wait() == 1
    assert said in daemon.log.read_text()
    daemon.config.write_text(good)
    daemon.start()
    daemon.config.write_text(text)
    for command in (("reload", "--dry-run"), ("reload",), ("upgrade",)):
        refused = daemon.cli(*command, "--socket", str(daemon.control))
        assert (refused.returncode, said in refused.stderr) == (1, True)
    with daemon.connect() as client:
        assert client.ask("echo still here") == "still here"
    assert daemon.metrics()["poold_generation"] == 1


def test_no_file_at_all(poold: Poold) -> None:
    """Only without any file is poold what it has built in, its own chat."""
    daemon = poold()
    shown = tomllib.loads(daemon.cli("check", "--print").stdout)
    assert shown["server"]["handler"] == "cases:serve"
    if Path("/etc/poold/poold.toml").exists():
        pytest.skip("this machine has settings of its own")
    daemon.config.rename(daemon.folder / "elsewhere.toml")
    done = daemon.cli("check", "--print")
    assert tomllib.loads(done.stdout)["server"]["handler"] == "poold.handlers.chat:serve"


# Root without a user.


@needs_root
def test_root_without_a_user(poold: Poold) -> None:
    """That a handler runs as root is said by check, at the start and by status, until a user is named, which may be root."""
    daemon = poold(options={"server.user": None})
    assert WARNING in daemon.cli("check").stderr
    daemon.start()
    assert daemon.event("settings_warning")["message"] == WARNING
    assert len(daemon.events("settings_warning")) == 1
    assert daemon.ask("status")["warnings"] == [WARNING]
    assert f"warning      {WARNING}" in daemon.cli("status").stdout.splitlines()
    mark = daemon.mark()
    assert daemon.cli("reload").returncode == 0
    assert daemon.event("settings_warning", after=mark)["message"] == WARNING
    mark = daemon.mark()
    assert daemon.cli("upgrade").returncode == 0
    assert daemon.event("settings_warning", after=mark)["message"] == WARNING
    assert daemon.ask("status")["warnings"] == [WARNING]
    for user in ("root", "nobody"):
        # Which needs nothing that another user may not read.
        daemon.write(options={"server.user": user, "server.handler": "poold.handlers.echo:serve"})
        assert "warning" not in daemon.cli("check").stderr
        mark = daemon.mark()
        assert daemon.cli("reload").returncode == 0
        assert daemon.events("settings_warning", after=mark) == []
        assert daemon.ask("status")["warnings"] == []
        assert "warning" not in daemon.cli("status").stdout


@needs_root
def test_root_with_a_command(poold: Poold) -> None:
    """A command that runs as root is warned of too."""
    daemon = poold(options={"server.handler": None, "server.command": ["cat"], "server.group": "nogroup"})
    assert "the command runs as root" in daemon.cli("check").stderr


# What is known before it is tried.


def test_more_open_files_than_the_limit_allows(poold: Poold) -> None:
    """Settings that need more open files than the hard limit allows are refused by check, reload and upgrade, with key and line."""
    daemon = poold().start(prelude=lowered(1024))
    daemon.write(options={"pool.max_children": 5000})
    line = daemon.config.read_text().splitlines().index("max_children = 5000") + 1
    said = f"{daemon.config}: line {line}: pool.max_children: "
    program = f"{lowered(1024)}; from poold.cli import main; raise SystemExit(main(['check']))"
    checked = subprocess.run([sys.executable, "-c", program], cwd=daemon.folder, capture_output=True, text=True, check=False)
    assert (checked.returncode, said in checked.stderr, "the hard limit is 1024" in checked.stderr) == (1, True, True)
    assert daemon.cli("check").returncode == 0
    for command in (("reload", "--dry-run"), ("reload",), ("upgrade",)):
        refused = daemon.cli(*command, "--socket", str(daemon.control))
        assert (refused.returncode, said in refused.stderr) == (1, True)
    command = {"server.handler": None, "server.command": ["cat"], "pool.max_children": 5000, "pool.max_spare": 2000}
    daemon.write(options=command)
    assert "pool.max_spare: " in daemon.cli("reload", "--dry-run", "--socket", str(daemon.control)).stderr
    daemon.write(options={**command, "pool.connections_per_child": 0})
    assert "pool.max_children: " in daemon.cli("reload", "--dry-run", "--socket", str(daemon.control)).stderr
    with daemon.connect() as client:
        assert client.ask("echo untouched") == "untouched"


def test_start_beyond_the_limit(poold: Poold) -> None:
    """A start says with key and line that it needs more open files than it may have."""
    daemon = poold(options={"pool.max_children": 5000})
    daemon.start(wait=False, prelude=lowered(1024))
    assert daemon.wait() == 1
    assert "pool.max_children: " in daemon.log.read_text()
    assert f"{daemon.config}: line " in daemon.log.read_text()


@pytest.mark.parametrize("depth", [33, 90, 900, 100_000])
@pytest.mark.parametrize("kind", ["keys", "lists"])
def test_options_nested_without_an_end(poold: Poold, kind: str, depth: int) -> None:
    """Options that are nested too deep to be passed on are refused with a message, in no time, by check and by reload."""
    daemon = poold().start()
    value = f"{'a.' * depth}a = 1" if kind == "keys" else f"a = {'[' * depth}{']' * depth}"
    daemon.config.write_text(daemon.config.read_text() + f"[server.options]\n{value}\n")
    for command in (("check",), ("reload", "--socket", str(daemon.control))):
        refused = daemon.cli(*command)
        assert refused.returncode == 1
        assert any(words in refused.stderr for words in ("can be nested 32 deep", "nested too deeply", "more than 40 parts"))
        assert "Traceback" not in refused.stderr
    assert daemon.metrics()["poold_loop_errors_total"] == 0


def test_options_nested_as_deep_as_they_may_be(poold: Poold) -> None:
    """What check lets through reaches the handler."""
    nested: object = 1
    for _ in range(31):
        nested = [nested]
    daemon = poold(options={"server.options": {"a": nested}})
    assert daemon.cli("check").returncode == 0
    daemon.start()
    assert daemon.cli("reload").returncode == 0
    with daemon.connect() as client:
        assert f'"a": {"[" * 31}1{"]" * 31}' in client.ask("facts")


def test_dry_run_knows_what_was_not_passed(poold: Poold) -> None:
    """A dry run says that the service manager has not passed a socket, as the reload does."""
    daemon = poold().start()
    daemon.config.write_text(daemon.config.read_text() + '[[listener]]\naddress = "systemd://other"\n')
    for command in (("reload", "--dry-run"), ("reload",)):
        refused = daemon.cli(*command)
        assert refused.returncode == 1
        assert "listener systemd://other address: no socket named 'other' was passed (passed: main)" in refused.stderr


def test_dry_run_knows_of_too_many_names(poold: Poold) -> None:
    """A dry run says that one life of poold has no more names for listeners, and uses none of them up."""
    daemon = poold().start()
    text = daemon.config.read_text()
    for first in (0, 63):
        names = range(first, first + 63)
        sockets = "".join(f'[[listener]]\naddress = "unix://{daemon.folder}/{number}.sock"\nname = "{number}"\n' for number in names)
        daemon.config.write_text(text + sockets)
        for command in (("reload", "--dry-run"), ("reload",)):
            done = daemon.cli(*command)
            assert done.returncode == (0 if first == 0 else 1), done.stderr
            assert ("at most 64 listener names" in done.stderr) is (first > 0)


# Who is refused, and why.

REFUSING = {"pool.when_full": "refuse", "pool.refuse_message": "busy\n", "pool.min_spare": 0, "pool.max_spare": 0}


def burst(daemon: Daemon, count: int) -> list[str]:
    """Be so many clients that come while the master stands still, and return what each gets to its question."""
    with frozen(daemon.master):
        clients = [daemon.connect() for _ in range(count)]
        for client in clients:
            client.send(b"echo served\n")
    answers = [client.line() for client in clients]
    for client in clients:
        client.close()
    return answers


def test_a_burst_at_the_cap_is_full(poold: Poold) -> None:
    """Whoever is refused in a burst because every slot is somebody's, also somebody's who has no worker yet, is refused as `full`."""
    daemon = poold(options={**REFUSING, "pool.max_children": 8}).start()
    answers = burst(daemon, 40)
    assert set(answers) == {"served", "busy"}
    assert answers.count("served") >= 8
    metrics = daemon.metrics()
    assert metrics.total("poold_connections_refused_total", reason="full") == answers.count("busy")
    assert metrics.total("poold_connections_refused_total") == answers.count("busy")


def test_a_burst_below_the_cap_is_served(poold: Poold) -> None:
    """Nobody is refused below the cap because so many workers are being born at the same time: they wait a moment."""
    daemon = poold(options={**REFUSING, "pool.max_children": 200}).start()
    assert burst(daemon, 180) == ["served"] * 180
    assert daemon.metrics().total("poold_connections_refused_total") == 0


def test_a_failing_mold_below_the_cap_is_no_resources(poold: Poold, tmp_path: Path) -> None:
    """Below the cap, while no worker can be born, newcomers are refused as `no_resources`; at the cap it is `full` again."""
    mood = tmp_path / "mood"
    options = {"pool.max_children": 2, "timeouts.startup": 60, "server.handler": "moody:serve", "server.environment": {"MOOD": str(mood)}}
    daemon = poold(options={**REFUSING, **options}).start()
    # No substitute either.
    mood.write_text("raise")
    with contextlib.ExitStack() as stack:
        with out_of_files(mold_of(daemon)):
            waiting = stack.enter_context(daemon.connect())
            eventually(lambda: daemon.metrics().total("poold_fork_failures_total", errno="EMFILE") >= 3, "births fail")
            while not daemon.metrics().total("poold_connections_refused_total", reason="full"):
                # Somebody who comes between two tries gets the last slot; from then on it is the cap that refuses.
                stack.enter_context(daemon.connect())
            metrics = daemon.metrics()
            assert metrics["poold_sessions_active"] == 2
            assert metrics.total("poold_connections_refused_total", reason="no_resources") > 0
        waiting.send(b"hello\n")
        assert waiting.line().endswith("hello")

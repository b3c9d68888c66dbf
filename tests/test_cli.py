"""The command line: run, check, what is refused and how."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import poold as package
from tests.laws import Metrics
from tests.support import Client, Poold
from tests.waiting import eventually

ROOT = Path(__file__).parent.parent


def run(*arguments: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command of poold's in a folder."""
    command = [sys.executable, "-P", "-m", "poold", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, env={**os.environ, **environ}, check=False)


def test_version_and_help(tmp_path: Path) -> None:
    """--version and --help answer and exit with 0; nonsense exits with 2."""
    assert run("--version", folder=tmp_path).stdout == f"poold {package.__version__}\n"
    assert "check" in run("--help", folder=tmp_path).stdout
    assert run("dance", folder=tmp_path).returncode == 2
    assert run("run", "--fast", folder=tmp_path).returncode == 2


def test_every_problem_at_once(tmp_path: Path) -> None:
    """`check` and `run` list every problem with its key and line, and exit with 1."""
    (tmp_path / "bad.toml").write_text(
        '[pool]\nmax_childern = 3\nmin_spare = -1\n[server]\nuser = "no-such-user"\nhandler = "oops"\n'
        '[[listener]]\naddress = "tcp://localhost"\n[timeouts]\nkill = 0\nidle = 3\n'
    )
    for command in ("check", "run"):
        done = run(command, "-c", "bad.toml", folder=tmp_path)
        assert done.returncode == 1
        lines = done.stderr.splitlines()
        for line, key, hint in (
            (2, "pool.max_childern", "max_children"),
            (3, "pool.min_spare", "0"),
            (5, "server.user", "no-such-user"),
            (6, "server.handler", "module:object"),
            (8, "listener[1].address", "port"),
            (10, "timeouts.kill", "above 0"),
            (11, "timeouts.idle", "not supported yet"),
        ):
            assert any(f"line {line}: {key}: " in text and hint in text for text in lines), (key, done.stderr)


def test_syntax_error(tmp_path: Path) -> None:
    """A file that is not TOML is refused with line and column."""
    (tmp_path / "bad.toml").write_text("[pool]\nmax_children = = 3\n")
    done = run("check", "-c", "bad.toml", folder=tmp_path)
    assert done.returncode == 1
    assert "line 2" in done.stderr


def test_check_good(tmp_path: Path) -> None:
    """`check` says that good settings are good, and --print shows them all, as TOML that means the same."""
    (tmp_path / "good.toml").write_text('[pool]\nmax_children = 7\n[server]\nhandler = "poold.handlers.echo:serve"\n')
    assert run("check", "-c", "good.toml", folder=tmp_path).returncode == 0
    done = run("check", "-c", "good.toml", "--print", folder=tmp_path)
    assert tomllib.loads(done.stdout)["pool"]["max_children"] == 7
    (tmp_path / "again.toml").write_text(done.stdout)
    assert run("check", "-c", "again.toml", "--print", folder=tmp_path).stdout == done.stdout


def test_check_imports_the_handler(tmp_path: Path) -> None:
    """`check` imports the handler in a process of its own, and says why that fails."""
    (tmp_path / "bad.toml").write_text('[server]\nhandler = "nowhere:serve"\n')
    done = run("check", "-c", "bad.toml", folder=tmp_path)
    assert done.returncode == 1
    assert "No module named 'nowhere'" in done.stderr


def test_settings_by_environment_and_by_folder(tmp_path: Path) -> None:
    """$POOLD_CONFIG names the settings; without it, poold.toml in the working directory is used."""
    served = '[server]\nhandler = "poold.handlers.echo:serve"\n'
    (tmp_path / "poold.toml").write_text(f"{served}[pool]\nmax_children = 5\n")
    (tmp_path / "other.toml").write_text(f"{served}[pool]\nmax_children = 6\n")
    assert tomllib.loads(run("check", "--print", folder=tmp_path).stdout)["pool"]["max_children"] == 5
    done = run("check", "--print", folder=tmp_path, POOLD_CONFIG="other.toml")
    assert tomllib.loads(done.stdout)["pool"]["max_children"] == 6


def test_example(tmp_path: Path) -> None:
    """`example` prints the repository's poold.toml byte for byte, and exists there once: the other name is a link to the package's."""
    command = [sys.executable, "-P", "-m", "poold", "example"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=30, env={**os.environ, "LC_ALL": "C"}, check=True)
    assert done.stdout == (ROOT / "poold.toml").read_bytes()
    assert (ROOT / "poold.toml").samefile(ROOT / "poold" / "poold.toml")


def test_example_of_an_installation(tmp_path: Path) -> None:
    """A wheel made of the sdist of a checkout carries the example, and `check` finds it good."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    shutil.copytree(ROOT / "poold", checkout / "poold", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "poold.toml"):
        shutil.copy(ROOT / name, checkout / name, follow_symlinks=False)
    build = "from setuptools import build_meta; print(build_meta.build_{}({!r}))"
    subprocess.run([sys.executable, "-c", build.format("sdist", str(tmp_path))], cwd=checkout, capture_output=True, timeout=300, check=True)
    [sdist] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        packed.extractall(tmp_path, filter="data")
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    subprocess.run([sys.executable, "-c", build.format("wheel", str(tmp_path))], cwd=source, capture_output=True, timeout=300, check=True)
    [wheel] = tmp_path.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, capture_output=True, timeout=300, check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import poold; print(poold.__file__)"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
    )
    assert where.stdout.strip() == str(site / "poold" / "__init__.py")
    done = run("example", folder=elsewhere, PYTHONPATH=str(site))
    assert (done.returncode, done.stdout) == (0, (ROOT / "poold.toml").read_text())
    (elsewhere / "poold.toml").write_text(done.stdout)
    checked = run("check", "-c", "poold.toml", folder=elsewhere, PYTHONPATH=str(site))
    assert (checked.returncode, checked.stdout) == (0, f"{elsewhere}/poold.toml: good\n"), checked.stderr


def test_the_repository_s_settings_serve_chat(tmp_path: Path) -> None:
    """The repository's poold.toml runs as it is: chat on 7777, metrics on 9777; Ctrl-C ends it with 0."""
    text = (ROOT / "poold.toml").read_text()
    document = tomllib.loads(text)
    assert document["listener"][0]["address"] == "tcp://127.0.0.1:7777"
    assert document["metrics"]["listen"] == "tcp://127.0.0.1:9777"
    # On ports of the kernel's choice, so that it can run beside one that somebody has started.
    (tmp_path / "poold.toml").write_text(text.replace(":7777", ":0").replace(":9777", ":0"))
    command = [sys.executable, "-P", "-m", "poold"]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    daemon = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, env=environ, text=True, start_new_session=True)
    assert daemon.stderr is not None
    ports = {}
    for line in daemon.stderr:
        if found := re.search(r" (listening|metrics_listening) .*address=tcp://127.0.0.1:(\d+)", line):
            ports[found[1]] = int(found[2])
        if " ready " in line and " mold_" not in line:
            break
    with Client(("127.0.0.1", ports["listening"])) as anna:
        assert "guest" in anna.line() + anna.line()
        done = run("status", folder=tmp_path, XDG_RUNTIME_DIR=str(tmp_path))
        assert "1 active of at most 256" in done.stdout
        os.killpg(daemon.pid, signal.SIGINT)
        anna.rest()
    rest = daemon.stderr.read()
    daemon.stderr.close()
    assert daemon.wait(30) == 0
    assert "stopped" in rest
    assert not list(tmp_path.rglob("*.sock"))


def test_two_on_one_control_socket(poold: Poold) -> None:
    """A second poold with the same control socket refuses to start and leaves the first alone."""
    first = poold().start()
    second = poold(options={"control.socket": str(first.control)})
    second.start(wait=False)
    assert second.wait() == 1
    assert "control.socket: cannot listen" in second.log.read_text()
    assert first.ask("status")["phase"] == "running"


def test_metrics_off(poold: Poold) -> None:
    """With metrics.listen = "" there is no exporter, and everything else works."""
    daemon = poold(options={"metrics.listen": ""}).start(laws=False)
    with daemon.connect() as client:
        assert client.ask("echo on") == "on"
    assert [row["kind"] for row in daemon.children()].count("exporter") == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", daemon.metrics_port)) != 0


def test_text_log(poold: Poold) -> None:
    """The text log has one line an event, and what a peer can say cannot break it."""
    daemon = poold(options={"log.format": "text", "log.level": "info"}).start()
    with daemon.connect() as client:
        client.send(b"raise error\n")
        client.rest()
    line = eventually(lambda: [line for line in daemon.log.read_text().splitlines() if " handler_failed " in line])[0]
    assert " error=ValueError " in line
    assert "asked for\\\\nan error" in line or "asked for\\nan error" in line
    assert "\x1b" not in daemon.log.read_text()
    assert all(
        re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z (debug|info|warning|error) [a-z_]+", line) for line in daemon.log.read_text().splitlines()
    )


@pytest.mark.parametrize("code", [0, 1, 2, 70, 75, 127, 255])
def test_exit_statuses_of_handlers(poold: Poold, code: int) -> None:
    """Any exit status of a handler but 0 ends its session as `exit`, by sys.exit or by _exit."""
    daemon = poold().start()
    for order in (f"exit {code}", f"sysexit {code}"):
        with daemon.connect() as client:
            client.send(order.encode() + b"\n")
            assert client.rest() == b""
    daemon.metric("poold_sessions_ended_total", 2, cause="exit" if code else "ok")
    metrics: Metrics = daemon.metrics()
    assert metrics.total("poold_children_failed_total", reason="exit") == (2 if code else 0)

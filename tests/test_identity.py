"""Whose rights run what: no file or variable of a user's is read with rights that the user does not have."""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.childkit import mold_of
from tests.needs import needs_root
from tests.pythonkit import shared_python
from tests.support import HANDLERS, Daemon, Poold
from tests.upgradekit import upgrade
from tests.waiting import eventually

pytestmark = needs_root

NOBODY = 65534
# Says with which rights it runs, in a file that everybody may write to; and as whom, where it says nothing else.
TELLING = "import os; open({told!r}, 'a').write(f'{{os.getresuid()[0]}} {{os.getresuid()[1]}} {{os.getpid()}}\\n')"


@pytest.fixture
def home() -> Iterator[Path]:
    """Return a folder of the user's own, with a module in each place from which one is imported when an interpreter starts."""
    with tempfile.TemporaryDirectory(prefix="poold-home-") as name:
        folder = Path(name)
        text = TELLING.format(told=str(folder / "told"))
        site = folder / f".local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        site.mkdir(parents=True)
        (site / "evil.pth").write_text(text + "\n")
        (folder / "sitecustomize.py").write_text(text + "\n")
        for place in (folder, *folder.rglob("*")):
            os.chown(place, NOBODY, NOBODY)
        (folder / "told").touch(mode=0o666)
        (folder / "told").chmod(0o666)
        yield folder


def told(home: Path) -> set[str]:
    """Return as whom the user's modules have run."""
    return {user for line in (home / "told").read_text().splitlines() for user in line.split()[:2]}


def daemon_for(poold: Poold, home: Path, **options: object) -> Daemon:
    """Make a daemon that serves as nobody, whose home and PYTHONPATH are the user's own."""
    daemon = poold(
        options={
            "server.handler": "whoami:serve",
            "server.user": "nobody",
            "server.environment": {"HOME": str(home), "PYTHONPATH": str(home)},
            "pool.min_spare": 1,
            **options,
        }
    )
    for folder in [HANDLERS, *HANDLERS.parents, daemon.folder, *daemon.folder.parents]:
        if folder.stat().st_mode & 0o077 == 0 and folder.is_relative_to(tempfile.gettempdir()):
            folder.chmod(0o755)
    return daemon


def test_modules_of_the_user_run_as_the_user(poold: Poold, home: Path) -> None:
    """What starts with an interpreter (sitecustomize, .pth files) runs as the user, in molds alone, whyever one is started."""
    with shared_python() as python:
        daemon = daemon_for(poold, home)
        (daemon.folder / "whoami.py").write_text((HANDLERS / "whoami.py").read_text())
        daemon.write(
            options={
                "server.handler": "whoami:serve",
                "server.path": [str(daemon.folder)],
                "server.user": "nobody",
                "server.environment": {"HOME": str(home), "PYTHONPATH": str(home)},
            }
        )
        daemon.python = python
        daemon.start()
        assert not daemon.events("interpreter_isolated")
        molds = {mold_of(daemon)}
        os.kill(mold_of(daemon), signal.SIGKILL)
        eventually(lambda: len(daemon.events("mold_ready")) == 2, "another mold")
        molds.add(mold_of(daemon))
        assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
        molds.add(mold_of(daemon))
        assert upgrade(daemon).returncode == 0
        molds.add(mold_of(daemon))
        assert told(home) == {str(NOBODY)}
        assert {int(line.split()[2]) for line in (home / "told").read_text().splitlines()} == molds
        assert len(molds) == 4
        # While there is its interpreter.
        assert daemon.stop() == 0


def test_an_interpreter_that_the_user_may_not_run_is_isolated(poold: Poold, home: Path) -> None:
    """Where the user may not run the interpreter, nothing of the user's is read with other rights, and the handler has its variables."""
    daemon = daemon_for(poold, home).start()
    with daemon.connect() as client:
        assert "'uid': [65534, 65534, 65534]" in client.line()
    os.kill(mold_of(daemon), signal.SIGKILL)
    eventually(lambda: len(daemon.events("mold_ready")) == 2, "another mold")
    assert upgrade(daemon).returncode == 0
    assert told(home) <= {str(NOBODY)}


def test_check_imports_as_the_user(poold: Poold, home: Path) -> None:
    """`poold check` lets nothing of the user's run with other rights either."""
    daemon = daemon_for(poold, home)
    done = daemon.cli("check", "-c", str(daemon.config))
    assert done.returncode == 0, done.stderr
    assert told(home) <= {str(NOBODY)}


def test_nobody_looks_into_master_mold_and_exporter(poold: Poold) -> None:
    """A session of the same user can neither read nor trace master, mold, exporter or a sibling, nor take their descriptors."""
    options = {"server.handler": "attacker:serve", "pool.min_spare": 1}
    with shared_python() as python:
        daemon = poold(options=options)
        _belongs_to_nobody(daemon)
        daemon.write(options={**options, "server.path": [str(daemon.folder)]})
        daemon.python = python
        daemon.start(prelude=f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})")
        with daemon.connect() as client, daemon.connect() as other:
            client.send(json.dumps("say(os.getresuid()[0])").encode() + b"\n")
            assert json.loads(client.line()) == [NOBODY]
            other.send(json.dumps("say(os.getpid())").encode() + b"\n")
            [sibling] = json.loads(other.line())
            hidden = {"master": daemon.master, "sibling": sibling}
            hidden |= {row["kind"]: row["pid"] for row in daemon.children() if row["kind"] in ("mold", "exporter")}
            assert set(hidden) == {"master", "mold", "exporter", "sibling"}
            for kind, pid in hidden.items():
                for attempt in (
                    f"open('/proc/{pid}/mem', 'rb').close()",
                    f"os.listdir('/proc/{pid}/fd')",
                    f"os.readlink('/proc/{pid}/exe')",
                    f"os.pidfd_open({pid}) and ctypes.CDLL(None, use_errno=True)",
                ):
                    code = f"say(tried(lambda: {attempt}))"
                    expected = "" if "pidfd_open" in attempt else "PermissionError"
                    client.send(json.dumps(code).encode() + b"\n")
                    assert json.loads(client.line()) == [expected], (kind, attempt)
                # pidfd_getfd(2) and ptrace(2), PTRACE_ATTACH.
                for code in (f"say(called('syscall', 438, os.pidfd_open({pid}), 3, 0))", f"say(called('ptrace', 16, {pid}, None, None))"):
                    client.send(json.dumps(code).encode() + b"\n")
                    assert json.loads(client.line()) == [1], (kind, code)
        # After an exec, it is asked for anew.
        assert upgrade(daemon).returncode == 0
        with daemon.connect() as client:
            client.send(json.dumps(f"say(tried(lambda: open('/proc/{daemon.master}/mem', 'rb')))").encode() + b"\n")
            assert json.loads(client.line()) == ["PermissionError"]
        assert daemon.stop() == 0


def _belongs_to_nobody(daemon: Daemon) -> None:
    """Have a daemon's folder be of a user who starts it."""
    for name in ("attacker", "cases"):
        (daemon.folder / f"{name}.py").write_text((HANDLERS / f"{name}.py").read_text())
    for folder in daemon.folder.parents:
        if folder.stat().st_mode & 0o077 == 0:
            folder.chmod(0o755)
    for place in (daemon.folder, *daemon.folder.iterdir()):
        os.chown(place, NOBODY, NOBODY)

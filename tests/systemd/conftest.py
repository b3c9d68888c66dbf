"""Fixtures: an installed poold, a machine that has it and the shipped units, and a unit to be started by the test."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import HANDLERS
from tests.systemd.machine import Machine, missing
from tests.systemd.unit import SHIPPED, Unit

ROOT = Path(__file__).parent.parent.parent
# What units can use: not an interpreter under somebody's home.
PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a virtual environment of the system's Python that has poold, to be /opt/poold; made once for all of pytest's processes."""
    if reason := missing():
        pytest.skip(reason)
    version = subprocess.run([PYTHON, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True, check=False).stdout
    if version.strip() != str(sys.version_info[:2]):
        # The same tests again, of the same interpreter.
        pytest.skip(f"{PYTHON} has version {version.strip() or 'none'}, and the tests run with {sys.version_info[:2]}")
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    venv, outcome = base / "opt-poold", base / "opt-poold.outcome"
    with (base / "opt-poold.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not outcome.exists():
            outcome.write_text(install(venv, base / "opt-poold.source"))
    if reason := outcome.read_text():
        pytest.skip(f"poold cannot be installed for {PYTHON}: {reason}")
    return venv


def install(venv: Path, source: Path) -> str:
    """Make a virtual environment and install poold into it; say why it failed, "" if it did not."""
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", str(venv)], check=True, umask=0o022)
    # A copy: a build leaves files beside its sources, and takes up what an earlier one has left.
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "poold", source / "poold", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(venv / "bin" / "python3")]
    done = subprocess.run([*pip, "install", str(source)], capture_output=True, text=True, check=False, umask=0o022)
    if done.returncode:
        return next((line.strip() for line in done.stderr.splitlines() if "ERROR" in line), done.stderr)
    # Where it will be.
    command = venv / "bin" / "poold"
    command.write_text("#!/opt/poold/bin/python3\n" + command.read_text().partition("\n")[2])
    return ""


def shipped() -> dict[str, str]:
    """Return what deploy/README.md has an operator install, by path."""
    files = {f"/etc/systemd/system/{path.name}": path.read_text() for path in SHIPPED.glob("*.s*e*")}
    return files | {f"/etc/sysusers.d/{path.name}": path.read_text() for path in (SHIPPED / "sysusers.d").iterdir()}


Boot = Callable[..., Machine]


@pytest.fixture(scope="session")
def boot(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """Return a function that boots a machine with poold installed, and with further files; whoever calls it closes it."""

    def make(files: dict[str, str] | None = None) -> Machine:
        folder = tmp_path_factory.mktemp("machine")
        booted = Machine(folder, files={**shipped(), **(files or {})}, binds={"poold": installed, "handlers": HANDLERS})
        booted.run("systemd-sysusers")
        return booted

    return make


@pytest.fixture(scope="session")
def machine(boot: Boot) -> Iterator[Machine]:
    """Return the machine that most tests share, one after the other."""
    with boot() as booted:
        yield booted


@pytest.fixture
def unit(machine: Machine) -> Iterator[Callable[[str], Unit]]:
    """Return a function that takes a shipped unit, to be started by the test; it is stopped afterwards."""
    units: list[Unit] = []

    def take(name: str = "poold") -> Unit:
        units.append(Unit(machine, name))
        return units[-1]

    yield take
    wrong = [text for each in units for text in each.close()]
    # pytest shows it when the test has failed.
    for each in units:
        print("\n".join([f"--- {each.name}", *(record["MESSAGE"] for record in each.journal())]))
    if wrong:
        pytest.fail("\n".join(wrong))

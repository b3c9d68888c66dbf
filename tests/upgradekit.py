"""What tests of the upgrade have in common: it is asked for, clients come and go meanwhile, and the installed code can be changed."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import poold as package
from tests.support import Daemon, open_files

Poold = Callable[..., Daemon]
SOURCE = Path(package.__file__).parent


def upgrade(daemon: Daemon) -> subprocess.CompletedProcess[str]:
    """Ask for an upgrade and wait for its result."""
    return daemon.cli("upgrade", "--socket", str(daemon.control))


def upgraded(daemon: Daemon) -> None:
    """Have an upgrade applied."""
    done = upgrade(daemon)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("applied, generation")


def install(folder: Path) -> Path:
    """Make a copy of the package that a test may change, and return where it is: `folder` is to be on the path."""
    shutil.copytree(SOURCE, folder / "poold", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "poold"


def path_of(installed: Path) -> Mapping[str, str]:
    """Return the variables with which poold starts from a copy."""
    return {"PYTHONPATH": str(installed.parent), "PYTHONDONTWRITEBYTECODE": "1"}


def mend(file: Path, old: str, new: str) -> None:
    """Change what is installed, in one place."""
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file.name}"
    file.write_text(text.replace(old, new))


def inheritable(pid: int) -> dict[int, str]:
    """Return the descriptors of a process that a program it executes would get, but for the standard streams."""
    found = {}
    for fd, file in open_files(pid).items():
        try:
            lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
        except FileNotFoundError:
            continue
        flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
        if fd > 2 and not flags & os.O_CLOEXEC:
            found[fd] = file
    return found

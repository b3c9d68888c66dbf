"""What tests of the upgrade have in common: it is asked for, clients come and go meanwhile, and the installed code can be changed."""

import base64
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import poold as package
from tests.procfs import open_files, open_flags
from tests.support import Client, Daemon

SOURCE = Path(package.__file__).parent
# Where `poold.master.upgrade.takeover` begins, with `owners` and the document as `state`.
TAKEOVER = "    for owner in owners:\n"


def upgrade(daemon: Daemon) -> subprocess.CompletedProcess[str]:
    """Ask for an upgrade and wait for its result."""
    return daemon.cli("upgrade", "--socket", str(daemon.control))


def upgraded(daemon: Daemon) -> None:
    """Have an upgrade applied."""
    done = upgrade(daemon)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("applied, generation")


def asked_for_an_upgrade(daemon: Daemon) -> Client:
    """Return a client of the control socket that waits for the result of an upgrade."""
    client = Client(str(daemon.control))
    client.send(b'{"verb": "upgrade"}\n')
    return client


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


def in_the_successor(*lines: str, indent: str = "    ") -> str:
    """Return code that does this in the program that an upgrade puts in the master's place, and not where it is tried before."""
    condition = f"{indent}import os, sys\n{indent}if any('from poold.master.successor' in word for word in sys.orig_argv):\n"
    return condition + "".join(f"{indent}    {line}\n" for line in lines)


def record(installed: Path) -> None:
    """Write down what is installed as pip does: RECORD, with size and checksum of each file (PEP 427)."""
    folder = installed.parent / "poold-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: poold\nVersion: 0.1.0\n")
    rows = []
    for file in sorted(installed.rglob("*")):
        if file.is_file():
            data = file.read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{file.relative_to(installed.parent)},sha256={digest},{len(data)}\n")
    (folder / "RECORD").write_text("".join(rows) + f"{folder.name}/RECORD,,\n")


def inheritable(pid: int) -> dict[int, str]:
    """Return the descriptors of a process that a program it executes would get, but for the standard streams."""
    found = {}
    for fd, file in open_files(pid).items():
        try:
            flags = open_flags(pid, fd)
        except FileNotFoundError:
            continue
        if fd > 2 and not flags & os.O_CLOEXEC:
            found[fd] = file
    return found

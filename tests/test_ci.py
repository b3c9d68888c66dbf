"""What .ci/run says of tests that fail: the script itself, in a checkout whose programs are stand-ins."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "run"
# All that the script finds of the system: so it installs nothing, and meets no other Python.
PROGRAMS = ("awk", "bash", "dirname", "env", "id", "ls", "sed")
README = "```sh\nfirst\n```\n\n```sh\n.venv/bin/pytest\n```\n"
FAILED = ["tests/test_one.py::test_a", "tests/test_two.py::test_b[x y]"]
# Fails the first time, as told by its cache; the second time it does what it is asked for.
PYTEST = """#!/bin/bash
if [ -e failed ]; then exit $SECOND; fi
: >failed
exit $FIRST
"""


def run(folder: Path, *, first: int, second: int) -> tuple[int, list[str]]:
    """Run the script where the tests end like this; return its exit status and the lines that it prints."""
    for place in (folder / ".ci", folder / "bin", folder / "home", folder / ".venv" / "bin", folder / ".pytest_cache" / "v" / "cache"):
        place.mkdir(parents=True)
    shutil.copy(SCRIPT, folder / ".ci")
    (folder / "README.md").write_text(README)
    (folder / ".pytest_cache" / "v" / "cache" / "lastfailed").write_text(json.dumps(dict.fromkeys(FAILED, True)))
    for name in PROGRAMS:
        (folder / "bin" / name).symlink_to(shutil.which(name) or pytest.skip(f"{name} is not installed"))
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    for name, text in {"pytest": PYTEST, **dict.fromkeys(("pip", "ruff", "mypy"), "#!/bin/bash\n")}.items():
        (folder / ".venv" / "bin" / name).write_text(text)
        (folder / ".venv" / "bin" / name).chmod(0o755)
    variables = {"PATH": str(folder / "bin"), "HOME": str(folder / "home"), "FIRST": str(first), "SECOND": str(second)}
    done = subprocess.run([str(folder / ".ci" / "run")], capture_output=True, text=True, check=False, env=variables, cwd=os.sep)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("second", [0, 1])
def test_a_second_try_is_named(tmp_path: Path, second: int) -> None:
    """The tests that are tried once more are the run's last lines, one a line; a second failure fails the run."""
    status, lines = run(tmp_path, first=1, second=second)
    assert status == second
    assert lines[-3:] == ["+ needed a second try:", *(f".venv {name}" for name in FAILED)]
    assert lines.count(f".venv {FAILED[0]}") == 2


def test_without_a_second_try_nothing_is_said(tmp_path: Path) -> None:
    """A run whose tests pass says nothing of second tries."""
    status, lines = run(tmp_path, first=0, second=1)
    assert status == 0
    assert not [line for line in lines if "second" in line or "once more" in line]

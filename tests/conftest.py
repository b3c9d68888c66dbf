"""Fixtures: a daemon factory that leaves nothing behind, and fails the test when something is left."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.procfs import children_of, stat_fields
from tests.support import Daemon

PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(scope="session", autouse=True)
def _orphans_fall_to_us() -> None:
    """Whatever a daemon leaves behind becomes a child of this process, and is found."""
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


@pytest.fixture
def poold(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Daemon]]:
    """Return a function that makes a daemon: `poold(options={"pool.max_children": 4})`, to be started by the test.

    Afterwards: the laws held in every scrape, it stopped with 0, no process, no zombie, no socket file, no internal error.
    """
    before = set(children_of(os.getpid()))
    daemons: list[Daemon] = []

    def make(**arguments: Any) -> Daemon:
        folder = tmp_path / f"poold-{len(daemons)}"
        folder.mkdir(mode=0o700)
        daemons.append(Daemon(folder, **arguments))
        return daemons[-1]

    yield make
    wrong = [f"{daemon.folder.name}: {text}" for daemon in daemons for text in daemon.close()]
    for pid in set(children_of(os.getpid())) - before:
        fields = stat_fields(pid)
        wrong.append(f"process {pid} is left, in state {fields[0] if fields else 'gone'}")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if wrong:
        for daemon in daemons:
            print(f"--- {daemon.log}\n{daemon.log.read_text(errors='replace')}" if daemon.log.exists() else "no log")
        pytest.fail("\n".join(wrong))

"""How long the machine itself stood still while something was measured: see pauses.c."""

import subprocess
from pathlib import Path
from typing import Self

from tests.bench.machine import Cores


class Pauses:
    """Watches both cores. As a context manager: from entry to exit, after which `longest` is known."""

    def __init__(self, *, programs: Path, cores: Cores) -> None:
        """Use the program compiled into this folder."""
        self._commands = [[str(programs / "pauses"), str(core)] for core in (cores.server, cores.load)]
        self._processes: list[subprocess.Popen[str]] = []
        self.longest: float | None = None
        """The longest time in which nothing could run on one of the cores, in seconds; None where real-time priority is refused."""

    def __enter__(self) -> Self:
        for command in self._commands:
            self._processes.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            )
        return self

    def __exit__(self, *_error: object) -> None:
        said = [process.communicate()[0] for process in self._processes]
        if not any(process.returncode for process in self._processes):
            self.longest = max(map(float, said))

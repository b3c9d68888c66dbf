"""What a server of the comparison is: what it does for a client, what it needs, how it is started."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.machine import first_line


@dataclass(frozen=True, slots=True)
class Service:
    """What a server does for a client: `request` is sent, and the answer must have `expected` in its first piece."""

    name: str
    request: bytes
    expected: bytes
    until_eof: bool


ECHO = Service("echo", b"hello\n", b"hello\n", until_eof=False)
HTTP = Service("HTTP", b"GET /hello.txt HTTP/1.0\r\n\r\n", b" 200 ", until_eof=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one server runs: its port on 127.0.0.1 and a folder of its own. It must be able to hold `sessions` at a time."""

    port: int
    metrics_port: int
    folder: Path
    programs: Path
    python: str
    sessions: int

    @property
    def control(self) -> Path:
        """The place of poold's control socket."""
        return self.folder / "control.sock"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server. `command` writes the files it needs into the place's folder and returns what to run, in the foreground.

    It needs a program, or a module of the chosen Python; `version` is what to ask for its version, "python" being that Python.
    """

    name: str
    about: str
    command: Callable[[Place], list[str]]
    service: Service = ECHO
    program: str = ""
    module: str = ""
    version: tuple[str, ...] = ()
    holds: bool = False

    def missing(self, python: str) -> str:
        """Return why it cannot be run here, "" when it can."""
        if self.module and first_line(python, "-c", f"import {self.module}; print('found')") != "found":
            return f"{python} has no module {self.module}"
        return f"{self.program} is not installed" if self.program and not shutil.which(self.program) else ""

    def describe(self, python: str) -> dict[str, str]:
        """Return what it is, and its version where that can be asked for."""
        asked = [python if word == "python" else word for word in self.version]
        return {"service": self.service.name, "about": self.about, "version": first_line(*asked) if asked else ""}

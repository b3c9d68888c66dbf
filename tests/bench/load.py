"""Runs the load generator (load.c) on its core and reads what it measured."""

import array
import json
import os
import select
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.machine import Cores
from tests.bench.peer import Service

# Where the latencies' distribution is kept: each half per cent, and a tail as fine as some thousand sessions allow.
QUANTILES = (*(number / 200 for number in range(200)), 0.999, 1.0)
MEANWHILE_SECONDS = 0.1


class LoadError(Exception):
    """The load generator could not do what it was asked; mostly because the server could not."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of the generator measured. Latencies are seconds, in the order in which the sessions ended."""

    ended: int
    failed: int
    seconds: float
    cpu_seconds: float
    failures: list[str]
    latencies: list[float]

    def quantile(self, part: float) -> float:
        """Return the latency that this part of the sessions did not exceed; 0 when there were none."""
        return self.quantiles((part,))[0]

    def quantiles(self, parts: tuple[float, ...] = QUANTILES) -> list[float]:
        """Return the latencies that these parts of the sessions did not exceed; 0 when there were none."""
        ordered = sorted(self.latencies) or [0.0]
        return [ordered[min(int(part * len(ordered)), len(ordered) - 1)] for part in parts]


class Generator:
    """The load generator, for one service at a time."""

    def __init__(self, *, programs: Path, cores: Cores, patience: float) -> None:
        """Use the program compiled into this folder; a session that takes longer than `patience` seconds has failed."""
        self._program = programs / "load"
        self._cores = cores
        self._patience = patience

    def closed(self, port: int, service: Service, *, seconds: float, concurrency: int) -> Load:
        """Keep so many sessions going, a new one for each that ends. Raises LoadError."""
        with self._running(service, "closed", "127.0.0.1", port, seconds, concurrency) as run:
            return run.result()

    @contextmanager
    def open(self, port: int, service: Service, *, seconds: float, rate: float) -> "Iterator[Run]":
        """Begin a session each 1/rate seconds, whatever became of those before; the caller asks the run for its result."""
        with self._running(service, "open", "127.0.0.1", port, seconds, rate) as run:
            yield run

    @contextmanager
    def hold(self, port: int, service: Service, *, sessions: int, meanwhile: Callable[[], object]) -> "Iterator[Run]":
        """Hold so many sessions that were opened one after the other, until the run is asked for its result. Raises LoadError.

        While they are opened, `meanwhile` is called every now and then.
        """
        with self._running(service, "held", "127.0.0.1", port, sessions) as run:
            run.wait_until_held(meanwhile)
            yield run

    @contextmanager
    def _running(self, service: Service, *arguments: object) -> "Iterator[Run]":
        with tempfile.NamedTemporaryFile(prefix="bench-latencies-") as raw:
            environ = {
                "LOAD_SEND": service.request.decode(),
                "LOAD_EXPECT": service.expected.decode(),
                "LOAD_UNTIL": "eof" if service.until_eof else "",
                "LOAD_PATIENCE": str(self._patience),
                "LOAD_RAW": raw.name,
            }
            with self._cores.started_on(self._cores.load):
                process = subprocess.Popen(
                    [str(self._program), *map(str, arguments)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={**os.environ, **environ},
                    process_group=0,
                )
            try:
                yield Run(process, Path(raw.name))
            finally:
                process.kill()
                process.communicate()


class Run:
    """The generator at work."""

    def __init__(self, process: subprocess.Popen[bytes], raw: Path) -> None:
        """Take the process; whoever started it ends it."""
        self._process = process
        self._raw = raw

    def wait_until_held(self, meanwhile: Callable[[], object]) -> None:
        """Return when all sessions are held. Raises LoadError when one could not be opened."""
        assert self._process.stderr is not None
        while not select.select([self._process.stderr], [], [], MEANWHILE_SECONDS)[0]:
            meanwhile()
        said = self._process.stderr.readline()
        if said != b"held\n":
            raise LoadError(said.decode().strip() or "the load generator ended")

    def result(self) -> Load:
        """Let go of held sessions, wait for the end and return what was measured. Raises LoadError."""
        output, said = self._process.communicate(b"\n")
        if self._process.returncode != 0:
            raise LoadError(said.decode().strip() or f"the load generator ended with {self._process.returncode}")
        told: dict[str, Any] = json.loads(output)
        nanoseconds = array.array("Q", self._raw.read_bytes())
        return Load(
            ended=told["ended"],
            failed=told["failed"],
            seconds=told["seconds"],
            cpu_seconds=told["cpu_seconds"],
            failures=told["failures"],
            latencies=[value / 1e9 for value in nanoseconds],
        )

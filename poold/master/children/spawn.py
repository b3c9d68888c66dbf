"""Starts fresh interpreters: mold, exporter, trial. Workers are not started here; the mold clones them.

A child inherits descriptors 0 (/dev/null), 1 and 2 (see `poold.master.children.streams`) and the ones it is given by name, as `NAME=NUMBER`
arguments. Everything else is close-on-exec. Signals: none blocked, every disposition at its default. In a session of its own, so that a
terminal's Ctrl-C reaches the master alone. Its settings say who its master is, so that it ends with it also if that is dead already.

Whoever is to run as another user becomes that user between fork and exec: an interpreter reads files and variables of its user's before
the first line of ours (site, `.pth` files, PYTHONPATH), and must not do so with rights that the user does not have. Where that user may
not run this interpreter at all (it lies under somebody's home), it starts with the master's rights, isolated from all that the user can
change (`-I`, and variables of the master's own), and becomes the user itself before it reads anything of the user's.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poold import arguments
from poold.log import log
from poold.master.children.streams import Streams, StreamsPart
from poold.master.current import Current
from poold.master.document.part import Part
from poold.scoreboard import shared_memory
from poold.settings.config import Config, People, Server

# The few variables of the master's that children get.
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TZ", "USER", "LOGNAME", "SHELL")
# For the mold alone, which takes them out of what handlers see. A function of the C library that is bound before the clone is not bound
# again in each worker (ld.so(8)): some twenty pages of a worker.
MOLD_VARIABLES = {"LD_BIND_NOW": "1"}
# Of these, an interpreter gets that is to read nothing of any user's: the master's own, less what belongs to a person.
ISOLATED_VARIABLES = ("PATH", "PYTHONPATH", "LANG", "TZ")
# The programs of poold's: of each of these modules, an interpreter runs `main`.
EXPORTER, GUARD, LOGGER, MOLD = "poold.exporter.main", "poold.master.guard", "poold.logger.main", "poold.mold.main"
TRIAL, REHEARSAL, SUCCESSOR = "poold.settings.trial", "poold.master.rehearsal", "poold.master.successor"
PROGRAMS = (EXPORTER, GUARD, LOGGER, MOLD, TRIAL, REHEARSAL, SUCCESSOR)
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# `-P` keeps the working directory out of sys.path. `-c` and not `-m`, which would load runpy and what it needs. The package is this
# master's own, wherever it was found; its folder is on the path for that one import only.
BOOTSTRAP = "import sys; sys.path.insert(0, sys.argv.pop(1)); import poold; del sys.path[0]; from {module} import main; sys.exit(main())"
# Not resolved: behind a link that an operator moves to another release, an upgrade finds that one.
HOME = str(Path(__file__).absolute().parents[3])


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a mold is started with. JSON throughout: at an upgrade the new code writes it and the old code only passes it on.

    `seconds` is how long the handler's import may take. `environment` has nothing of the user's: a master of an older version starts the
    mold with its own rights. The document has `variables`, which are the user's.
    """

    document: Mapping[str, Any]
    environment: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LauncherPart(Part):
    """What children are started with: the limits of open files as they were at first (getrlimit(2): -1 is none), and the log's pipes."""

    limits: tuple[int, ...]
    streams: StreamsPart | None = None

    def check(self) -> None:
        """Raise ValueError where these are no limits."""
        if len(self.limits) != 2:
            raise ValueError("limits are soft and hard")

    def descriptors(self) -> Iterator[int]:
        """Yield the ends of the pipes."""
        if self.streams is not None:
            yield from (self.streams.own, self.streams.own_reader, self.streams.output, self.streams.output_reader)


@dataclass(frozen=True, slots=True)
class Launcher:
    """What every start needs: the master's environment, its limit of open files as it was before it was raised, and its streams."""

    environ: Mapping[str, str]
    limits: tuple[int, int]
    streams: Streams = field(default_factory=Streams)

    def save(self) -> LauncherPart:
        """Return what children are started with."""
        return LauncherPart(limits=self.limits, streams=self.streams.save())

    def restore(self, part: LauncherPart) -> None:
        """Do nothing: a launcher is made of its part, because a start needs it first of all."""

    def exporter(self, current: Current, **fds: int) -> int:
        """Start an exporter and return its pid. Raises OSError."""
        document = {**self._helper_document(current), "identity": current.people.helper}
        return self._start(EXPORTER, document, isolated_variables(self.environ), fds, self.streams.output)

    def logger(self, current: Current, **fds: int) -> int:
        """Start a logger and return its pid. Raises OSError.

        It changes its user itself: before its first line nobody of that user, whom sessions may run as too, is to take the log from it.
        """
        document = {**self._helper_document(current), "becomes": current.people.helper}
        return self._start(LOGGER, document, isolated_variables(self.environ), fds, self.streams.real, isolate=True)

    def _helper_document(self, current: Current) -> dict[str, Any]:
        config = current.config
        return {
            "nofile": self.limits,
            "log_format": config.log.format,
            "log_level": config.log.level,
            "log_journal": log.journal,
        }

    def recipe(self, config: Config, people: People) -> Recipe:
        """Return what a mold for these settings is started with."""
        variables = mold_variables(config.server, people, self.environ)
        document = {
            **mold_document(config),
            "identity": people.workers,
            "variables": variables,
            "nofile": list(self.limits),
            "own_variables": [name for name in MOLD_VARIABLES if name not in variables],
        }
        return Recipe(document, MOLD_VARIABLES | isolated_variables(self.environ), config.timeouts.import_)

    def mold(self, recipe: Recipe, **fds: int) -> int:
        """Start a mold and return its pid. Raises OSError."""
        # A recipe of an older version has its variables nowhere else.
        variables = recipe.document.get("variables", recipe.environment)
        return self._start(MOLD, recipe.document, MOLD_VARIABLES | variables, fds, self.streams.output)

    def trial(self, file: str | None, *, module: str = TRIAL, **fds: int) -> int:
        """Start a trial, which sees the master's own environment, and return its pid. Raises OSError."""
        return self._start(module, {"file": file}, self.environ, fds, self.streams.own)

    def guard(self, config: Config, **fds: int) -> int:
        """Start the guard of an upgrade and return its pid. Raises OSError."""
        document = {"log_format": config.log.format, "log_level": config.log.level, "log_journal": log.journal}
        return self._start(GUARD, document, self.environ, fds, self.streams.own)

    def _start(
        self,
        module: str,
        document: Mapping[str, Any],
        environ: Mapping[str, str],
        fds: Mapping[str, int],
        output: int,
        *,
        isolate: bool = False,
    ) -> int:
        whole = {**document, "master": os.getpid(), "log_framed": self.streams.logged}
        settings = memory_file("settings", json.dumps(whole).encode())
        inherited = {**fds, "settings": settings}
        identity = document.get("identity")
        try:
            try:
                return start_interpreter(module, fds=inherited, environment=environ, output=output, identity=identity, isolate=isolate)
            except PermissionError:
                if identity is None:
                    raise
                log.info("interpreter_isolated", module=module, interpreter=sys.executable, uid=identity["uid"])
                variables = MOLD_VARIABLES | isolated_variables(self.environ)
                return start_interpreter(module, fds=inherited, environment=variables, output=output, isolate=True)
        finally:
            os.close(settings)


def memory_file(name: str, data: bytes = b"") -> int:
    """Return a descriptor of a memory file with this content, to be read from its start; the caller closes it."""
    fd = shared_memory(name, 0)
    try:
        left = memoryview(data)
        while left:
            # As much as there is memory for, and no more: what is missing is told by the next try (write(2)).
            left = left[os.write(fd, left) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def interpreter_command(module: str, fds: Mapping[str, int], *, isolate: bool = False) -> list[str]:
    """Return the command that runs `main` of a module in a fresh interpreter, with the code that is on disk now."""
    option = "-I" if isolate else "-P"
    return [sys.executable, option, "-c", BOOTSTRAP.format(module=module), HOME, *arguments.write(fds)]


def start_interpreter(
    module: str,
    *,
    fds: Mapping[str, int],
    environment: Mapping[str, str],
    output: int,
    identity: Mapping[str, Any] | None = None,
    isolate: bool = False,
) -> int:
    """Start `main` of a module in a fresh interpreter, as this identity (None: as the master), and return its pid. Raises OSError.

    `output` becomes its descriptors 1 and 2.
    """
    person = {} if identity is None else {"user": identity["uid"], "group": identity["gid"], "extra_groups": identity["groups"]}
    started = subprocess.Popen(
        interpreter_command(module, fds, isolate=isolate),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=tuple(fds.values()),
        env=environment,
        start_new_session=True,
        **person,
    )
    # The reaper alone waits for children; without a status, the next start would wait for this one (subprocess, _cleanup).
    started.returncode = 0
    return started.pid


def isolated_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the few variables of an interpreter that is to read nothing of any user's."""
    kept = {key: value for key, value in environ.items() if key in ISOLATED_VARIABLES or key.startswith("LC_")}
    return {"PATH": DEFAULT_PATH, "PYTHONNOUSERSITE": "1"} | kept


def mold_variables(server: Server, people: People, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a mold and its workers: a few of the master's, those of the user, those of the settings."""
    kept = {key: value for key, value in environ.items() if key in KEPT_VARIABLES or key.startswith("LC_")}
    kept.setdefault("PATH", DEFAULT_PATH)
    return kept | people.variables | dict(server.environment)


def service_name(server: Server) -> str:
    """Return the short name of what is served, for process titles: the handler's module or class, or the program."""
    if server.command is not None:
        return os.path.basename(server.command[0])
    module, _, attribute = (server.handler or "").partition(":")
    return attribute if attribute[:1].isupper() else module.rpartition(".")[2]


def mold_document(settings: Config) -> dict[str, Any]:
    """Return what a mold needs of the settings."""
    server, pool = settings.server, settings.pool
    return {
        "handler": server.handler,
        "command": list(server.command) if server.command is not None else None,
        "name": service_name(server),
        "options": server.options,
        "path": list(server.path),
        "umask": server.umask,
        "working_directory": server.working_directory,
        "preload": pool.preload and server.command is None,
        "connections_per_child": pool.connections_per_child if server.command is None else 1,
        "log_format": settings.log.format,
        "log_level": settings.log.level,
        # Their stream is the master's own; the variable that says so is not for them.
        "log_journal": log.journal,
    }

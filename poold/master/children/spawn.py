"""Starts fresh interpreters: mold, exporter, logger, trial and guard. The mold clones the workers.

A child inherits descriptors 0 (/dev/null), 1 and 2 (`poold.master.children.streams`). Other
descriptors are inherited by name, as arguments of the form `NAME=NUMBER`. All others are
close-on-exec. No signal is blocked, and every disposition is the default. The child leads a session
of its own, so that Ctrl-C on a terminal reaches the master alone. The child's settings have the
master's pid, so that the child ends with the master, also where the master is dead already.

A child of another user becomes that user between fork and exec. An interpreter reads the user's
files and variables (site, `.pth` files, PYTHONPATH) before poold's first line. The interpreter must
not read these with rights that the user does not have.

The user may not be able to run this interpreter, for example one under a home folder. The
interpreter then starts with the master's rights, isolated from all that the user can change. The
command has `-I` and variables of the master's own. The child becomes the user before reading
anything of the user's.
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

# The variables of the master that children get.
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TZ", "USER", "LOGNAME", "SHELL")
# Variables for the mold alone, which removes these from what handlers see. With LD_BIND_NOW a
# function of the C library is bound before the clone, and not again in each worker (ld.so(8)). A
# worker then copies fewer pages.
MOLD_VARIABLES = {"LD_BIND_NOW": "1"}
# The variables of the master for an interpreter that must read nothing of any user's: no variable
# that belongs to a person.
ISOLATED_VARIABLES = ("PATH", "PYTHONPATH", "LANG", "TZ")
# poold's programs: the modules whose `main` a fresh interpreter runs.
EXPORTER, GUARD, LOGGER, MOLD = "poold.exporter.main", "poold.master.guard", "poold.logger.main", "poold.mold.main"
TRIAL, REHEARSAL, SUCCESSOR = "poold.settings.trial", "poold.master.rehearsal", "poold.master.successor"
PROGRAMS = (EXPORTER, GUARD, LOGGER, MOLD, TRIAL, REHEARSAL, SUCCESSOR)
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# `-P` keeps the working directory out of sys.path. `-c` and not `-m`, which would load runpy and
# what runpy needs. The package is this master's own, and its folder is on the path for that one
# import only.
BOOTSTRAP = "import sys; sys.path.insert(0, sys.argv.pop(1)); import poold; del sys.path[0]; from {module} import main; sys.exit(main())"
# The path is not resolved. An operator may move a link to another release, and an upgrade then
# finds that release behind the link.
HOME = str(Path(__file__).absolute().parents[3])


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a mold is started with.

    All values are JSON: at an upgrade the new code writes the recipe, and the old code only passes
    the recipe on. `seconds` is how long the handler's import may take. `environment` has no
    variable of the user's, because a master of an older version starts the mold with its own
    rights. The user's variables are in the document, under `variables`.
    """

    document: Mapping[str, Any]
    environment: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LauncherPart(Part):
    """What children are started with: limits and pipes.

    `limits` are the limits of open files that the master had at first (getrlimit(2); -1 is no
    limit). `streams` are the pipes of the log.
    """

    limits: tuple[int, ...]
    streams: StreamsPart | None = None

    def check(self) -> None:
        """Raise ValueError where `limits` are no limits."""
        if len(self.limits) != 2:
            raise ValueError("limits are soft and hard")

    def descriptors(self) -> Iterator[int]:
        """Yield the ends of the pipes."""
        if self.streams is not None:
            yield from (self.streams.own, self.streams.own_reader, self.streams.output, self.streams.output_reader)


@dataclass(frozen=True, slots=True)
class Launcher:
    """What every start needs: the master's environment, limits and streams.

    `limits` are the limits of open files that the master had before raising its own.
    """

    environ: Mapping[str, str]
    limits: tuple[int, int]
    streams: Streams = field(default_factory=Streams)

    def save(self) -> LauncherPart:
        """Return what children are started with."""
        return LauncherPart(limits=self.limits, streams=self.streams.save())

    def restore(self, part: LauncherPart) -> None:
        """Do nothing: the launcher is made of its part, because a start needs a launcher first."""

    def exporter(self, current: Current, **fds: int) -> int:
        """Start an exporter and return its pid. Raises OSError."""
        document = {**self._helper_document(current), "identity": current.people.helper}
        return self._start(EXPORTER, document, isolated_variables(self.environ), fds, self.streams.output)

    def logger(self, current: Current, **fds: int) -> int:
        """Start a logger and return its pid. Raises OSError.

        The logger changes its user itself. Sessions may run as the same user. Before the logger's
        first line, no process of that user must be able to take the log from the logger.
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
        # A recipe of an older version has the variables in `environment` alone.
        variables = recipe.document.get("variables", recipe.environment)
        return self._start(MOLD, recipe.document, MOLD_VARIABLES | variables, fds, self.streams.output)

    def trial(self, file: str | None, *, module: str = TRIAL, **fds: int) -> int:
        """Start a trial and return its pid. Raises OSError.

        A trial gets the master's own environment.
        """
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
    """Return a descriptor of a memory file with this content, at the start of the file.

    The caller closes the descriptor. Raises OSError.
    """
    fd = shared_memory(name, 0)
    try:
        left = memoryview(data)
        while left:
            # A write takes as much as there is memory for. The next write then raises the error
            # (write(2)).
            left = left[os.write(fd, left) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def interpreter_command(module: str, fds: Mapping[str, int], *, isolate: bool = False) -> list[str]:
    """Return the command that runs `main` of a module in a fresh interpreter.

    The interpreter loads the code that is on disk at that moment.
    """
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
    """Start `main` of a module in a fresh interpreter. Return the pid. Raises OSError.

    `identity` is the user of the process, or None for the master's own. `output` becomes
    descriptors 1 and 2.
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
    # The reaper alone waits for children. Without a returncode, the next start would wait for this
    # process (subprocess, _cleanup).
    started.returncode = 0
    return started.pid


def isolated_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an interpreter that must read nothing of any user's."""
    kept = {key: value for key, value in environ.items() if key in ISOLATED_VARIABLES or key.startswith("LC_")}
    return {"PATH": DEFAULT_PATH, "PYTHONNOUSERSITE": "1"} | kept


def mold_variables(server: Server, people: People, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a mold and its workers.

    These are a few of the master's, those of the user and those of the settings.
    """
    kept = {key: value for key, value in environ.items() if key in KEPT_VARIABLES or key.startswith("LC_")}
    kept.setdefault("PATH", DEFAULT_PATH)
    return kept | people.variables | dict(server.environment)


def service_name(server: Server) -> str:
    """Return the short name of the service for process titles.

    The name is the handler's module or class, or the program.
    """
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
        # The stream of mold and workers is the master's, and so is this fact. The variable that
        # tells a process about the journal is not passed to them.
        "log_journal": log.journal,
    }

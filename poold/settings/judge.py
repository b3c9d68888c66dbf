"""Judging settings: what a file's bytes mean, and whether this machine has what they ask for.

The command line and the trial call `read`, `load` and `verdict`. A function here changes nothing
and never runs in the master: pydantic is loaded in a process that ends after the judging.

A problem's key is what an operator writes, with positions from 1: `pool.max_children`,
`listener[2].address`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from poold.errors import ConfigError, Problem, pack_problems
from poold.settings import file as source_file
from poold.settings import people, preflight, toml
from poold.settings.config import Config, document
from poold.settings.lines import Finding, dotted, key_lines, nearest
from poold.settings.toml import effective

# Each problem is a line of the log, and no operator reads more lines than these.
PROBLEMS_MAX = 100

__all__ = ["Loaded", "effective", "load", "prepare", "read", "verdict"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Good settings, the file that holds them (None: no file), and warnings."""

    config: Config
    file: Path | None
    warnings: tuple[str, ...]


def read(path_option: str | None, environ: Mapping[str, str]) -> Loaded:
    """Find the settings file and judge all of its content as `prepare` does. Raises ConfigError."""
    file, text, warnings = source_file.find(path_option, environ)
    config = prepare(text, file, environ=environ)
    return Loaded(config, file, (*warnings, *preflight.cautions(config)))


def verdict(data: bytes, file: Path | None, *, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what JSON carries to the master: `settings`, `people` and `warnings`, or `problems`.

    In `settings` and `people` each name of a host, user or group is a number.
    """
    try:
        config = prepare(data, file, environ=environ)
        found = people.people(config.server)
        resolved = people.numbered(config)
    except ConfigError as error:
        return pack_problems(error.problems)
    except LookupError as error:
        return pack_problems([Problem("server.user", str(error))])
    warnings = [*(source_file.cautions(file) if file is not None else ()), *preflight.cautions(config)]
    return {"settings": document(resolved), "people": asdict(found), "warnings": warnings}


def load(data: bytes, file: Path | None) -> Config:
    """Return the settings that a file's bytes describe. Raises ConfigError with every problem.

    `load` judges what the text alone tells, and does not open `file`. Relative paths count from the
    folder of `file`; without a file, from the working directory.
    """
    config, findings, source = _judge(data, file)
    return _settled(config, findings, source=source, file=file)


def prepare(data: bytes, file: Path | None, *, environ: Mapping[str, str]) -> Config:
    """Return settings to be used: judged as `load` does, and fit for this machine.

    Each TCP host is a literal address. `environ` is the environment of poold. A file must name a
    handler or a command, because the built-in handler is for a start without a file. Raises
    ConfigError with the problems of the text and of the machine, by line.
    """
    config, findings, source = _judge(data, file, used=True)
    if config is not None:
        config, unresolved = preflight.resolved(config)
        findings = [*findings, *preflight.survey(config, environ), *unresolved]
    return _settled(config, findings, source=source, file=file)


def _judge(data: bytes, file: Path | None, *, used: bool = False) -> tuple[Config | None, list[Finding], str]:
    """Return the settings without the wrong keys, the findings, and the text.

    None stands for settings of which nothing useful is left.
    """
    parsed = toml.parse(data)
    if isinstance(parsed, Problem):
        raise ConfigError([parsed], str(file) if file else None)
    source, tree = parsed
    lacking = list(toml.unnamed(tree)) if used and file is not None else []
    config, findings = toml.validate(tree)
    return config and _anchored(config, file), [*lacking, *findings], source


def _anchored(config: Config, file: Path | None) -> Config:
    """Return the settings with absolute paths; relative ones count from the file's folder."""
    try:
        folder = file.absolute().parent if file else Path.cwd()
    except FileNotFoundError:  # the working directory was removed
        folder = Path("/")
    server, control = config.server, config.control
    command = server.command
    if command is not None and "/" in command[0]:
        command = (str(folder / command[0]), *command[1:])
    server = replace(
        server,
        path=tuple(str(folder / place) for place in server.path),
        working_directory=str(folder / server.working_directory),
        command=command,
    )
    if control.socket is not None:
        control = replace(control, socket=str(folder / control.socket))
    return replace(config, server=server, control=control)


def _settled(config: Config | None, findings: Iterable[Finding], *, source: str, file: Path | None) -> Config:
    """Return the settings without any finding. Raises ConfigError with the line of each finding."""
    problems = list(findings)
    if config is not None and not problems:
        return config
    lines = key_lines(source)
    found = [Problem(dotted(path), message, nearest(lines, path)) for path, message in problems]
    found.sort(key=lambda problem: problem.line or 0)
    if len(found) > PROBLEMS_MAX:
        found[PROBLEMS_MAX:] = [Problem("", f"and {len(found) - PROBLEMS_MAX} problems more")]
    raise ConfigError(found, str(file) if file else None)

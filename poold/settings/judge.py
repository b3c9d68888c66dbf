"""Judging settings: what a file's bytes mean, whether this machine has what they ask for, and the verdict for the master.

Owns what the command line and the trial ask for: `read`, or its parts `load`, `prepare`, `check` and `resolve`. It must never apply
anything, and never runs in the master: what it loads (pydantic) ends with the process that judged.

A problem's key is what an operator would write, with positions counted from 1: `pool.max_children`, `listener[2].address`.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from poold.errors import ConfigError, Problem, pack_problems
from poold.settings import config as plain
from poold.settings import file as source_file
from poold.settings import people, preflight, toml
from poold.settings.lines import Finding, dotted, key_lines, nearest
from poold.settings.schema import Config, settled
from poold.settings.toml import effective

# Each is a line of the log: nobody reads more.
PROBLEMS_MAX = 100

__all__ = ["Loaded", "check", "effective", "load", "prepare", "read", "resolve", "verdict"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings that were found good: the values, the file they come from (None: built in), its bytes, what to warn of."""

    config: Config
    file: Path | None
    text: bytes
    warnings: tuple[str, ...]


def read(path_option: str | None, environ: Mapping[str, str]) -> Loaded:
    """Find the settings file, read it and judge all of it as `prepare` does; raise ConfigError with every problem."""
    file, text, warnings = source_file.find(path_option, environ)
    config = prepare(text, file, environ=environ)
    return Loaded(config, file, text, (*warnings, *preflight.cautions(config)))


def verdict(data: bytes, file: Path | None, *, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what JSON carries to the master: `settings` and `people`, every name resolved, and `warnings`; or `problems`."""
    try:
        config = prepare(data, file, environ=environ)
        found = people.people(config.server)
        resolved = people.numbered(config)
    except ConfigError as error:
        return pack_problems(error.problems)
    except LookupError as error:
        return pack_problems([Problem("server.user", str(error))])
    warnings = [*(source_file.cautions(file) if file is not None else ()), *preflight.cautions(config)]
    return {"settings": plain.document(settled(resolved)), "people": asdict(found), "warnings": warnings}


def load(data: bytes, file: Path | None) -> Config:
    """Return the settings that a file's bytes describe; raise ConfigError with every problem, sorted by line.

    Judges only what can be told from the text. Relative paths count from the file's folder; without a file, from the
    working directory. `file` is not read.
    """
    config, findings, source = _judge(data, file)
    return _settled(config, findings, source=source, file=file)


def prepare(data: bytes, file: Path | None, *, environ: Mapping[str, str]) -> Config:
    """Do `load`, `check` and `resolve` in one pass; raise ConfigError with the problems of all three, sorted by line.

    These are settings to be used, so a file must name what is served: the built-in handler is for no file at all.
    """
    config, findings, source = _judge(data, file, used=True)
    if config is not None:
        config, unresolved = preflight.resolved(config)
        findings = [*findings, *preflight.survey(config, environ), *unresolved]
    return _settled(config, findings, source=source, file=file)


def check(config: Config, environ: Mapping[str, str] | None = None) -> list[Problem]:
    """Return what this machine lacks for the settings: accounts, folders, sockets, programs, interfaces. No lines.

    `environ` is the environment poold runs in, by default that of this process.
    """
    found = preflight.survey(config, os.environ if environ is None else environ)
    return [Problem(dotted(path), message) for path, message in found]


def resolve(config: Config) -> Config:
    """Return the settings with each TCP host as one literal address; raise ConfigError for those that have none."""
    config, unresolved = preflight.resolved(config)
    if unresolved:
        raise ConfigError([Problem(dotted(path), message) for path, message in unresolved])
    return config


def _judge(data: bytes, file: Path | None, *, used: bool = False) -> tuple[Config | None, list[Finding], str]:
    """Return the settings less what is wrong with them (None: too much is), the findings, and the text."""
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
    anchored = {
        "path": tuple(str(folder / place) for place in server.path),
        "working_directory": str(folder / server.working_directory),
        "command": command,
    }
    if control.socket is not None:
        control = control.model_copy(update={"socket": str(folder / control.socket)})
    return config.model_copy(update={"server": server.model_copy(update=anchored), "control": control})


def _settled(config: Config | None, findings: Iterable[Finding], *, source: str, file: Path | None) -> Config:
    problems = list(findings)
    if config is not None and not problems:
        return config
    lines = key_lines(source)
    found = [Problem(dotted(path), message, nearest(lines, path)) for path, message in problems]
    found.sort(key=lambda problem: problem.line or 0)
    if len(found) > PROBLEMS_MAX:
        found[PROBLEMS_MAX:] = [Problem("", f"and {len(found) - PROBLEMS_MAX} problems more")]
    raise ConfigError(found, str(file) if file else None)

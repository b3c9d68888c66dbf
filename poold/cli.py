"""The command line: one function for each command. Each returns an exit status.

All output goes through `say`. A peer, a handler, a file's name or a variable may have put control
characters into a text, and a terminal would obey these.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from poold import __version__
from poold.errors import ConfigError, ExitCode, Problem
from poold.log import escaped, is_journal, log, trace

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    from poold.master.engine.signals import Inbox

# A command waits for a reload or an upgrade as long as the trial, the handler's import and the
# exporter's start may take together.
RELOAD_SECONDS = 900.0
ASK_SECONDS = 10.0
EXAMPLE_HELP = "print a settings file with every key and its default"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    keep_standard_streams()
    sys.excepthook = _show_traceback
    try:
        try:
            parsed = _parser().parse_args(arguments)
            command: Callable[[argparse.Namespace], int] = parsed.command
            return command(parsed)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output has closed the pipe (`poold ps | head`). The rest in the buffer
        # goes to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.OK


def say(text: object, *, to: TextIO | None = None) -> None:
    """Print lines on standard output or on `to`, without anything that a terminal would obey."""
    print(_encodable(escaped(str(text)), sys.stdout if to is None else to), file=to)


def complain(text: object) -> None:
    """Print lines on standard error."""
    say(text, to=sys.stderr)


def _encodable(text: str, to: TextIO | None) -> str:
    encoding = getattr(to, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _show_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    complain(trace(error).rstrip("\n"))


class Parser(argparse.ArgumentParser):
    """Prints messages about arguments, which may be any text."""

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        super()._print_message(_encodable(escaped(message), sys.stderr), file)


def keep_standard_streams() -> None:
    """Open /dev/null for each of the descriptors 0, 1 and 2 that is closed.

    Otherwise a connection could become descriptor 1, and its client would get what is printed.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="poold", description="One isolated process per connection.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"poold {__version__}")
    parser.add_argument("-c", dest="file", metavar="FILE", help="the settings file (without a command: run)")
    parser.set_defaults(command=run)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        added.set_defaults(command=command)
        # SUPPRESS and not a default, which would undo a -c before the command.
        added.add_argument("-c", dest="file", metavar="FILE", default=argparse.SUPPRESS, help="the settings file")
        return added

    add("run", run, "run in the foreground")
    add("check", check, "check settings and handler").add_argument("--print", action="store_true", help="show the effective settings")
    commands.add_parser("example", help=EXAMPLE_HELP, description=EXAMPLE_HELP, allow_abbrev=False).set_defaults(command=example)
    add("reload", reload, "ask for a reload and wait for its result").add_argument(
        "--dry-run", action="store_true", help="say what would change, and change nothing"
    )
    add("stop", stop, "drain and end the daemon, and wait until it is gone").add_argument(
        "--now", action="store_true", help="do not wait for sessions"
    )
    add("upgrade", upgrade, "replace the program by what is installed now, and wait for the result")
    for name in ("reload", "upgrade", "stop"):
        commands.choices[name].add_argument("--socket", type=Path, metavar="PATH", help="the daemon's control socket")
    for name, command, help in (("status", status, "show what the daemon does"), ("ps", ps, "show its children")):
        asking = add(name, command, help)
        asking.add_argument("--socket", type=Path, metavar="PATH", help="the daemon's control socket")
        asking.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the master in the foreground until the master is told to stop."""
    from poold import sandbox, systemd
    from poold.master.engine.signals import Inbox
    from poold.stream import install

    sandbox.forbid_inspection()
    # A full pipe must not block what this process prints itself.
    install()
    origin = {key: value for key, value in os.environ.items() if not key.startswith("LISTEN_")}
    try:
        passed = systemd.listen_fds(os.environ)
    except ConfigError as error:
        return _refuse(error)
    # The inbox is opened early: signals that come while the rest is loaded are noted, and the
    # master acts on them later.
    systemd.inherit_nothing()
    inbox = Inbox()
    inbox.open()
    code = _run(arguments, inbox, passed, origin)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    # os._exit and not the interpreter's own end, which sets signals to their default dispositions
    # before the process is gone.
    os._exit(code)


def _run(arguments: argparse.Namespace, inbox: "Inbox", passed: list[tuple[str, int]], origin: dict[str, str]) -> int:
    # The other commands do not need these modules.
    from poold.master.current import Current
    from poold.master.main import Master
    from poold.settings import config, file
    from poold.settings.judge_in_fork import judge_in_fork

    try:
        found, text, warnings = file.find(arguments.file, os.environ)
        verdict = judge_in_fork(text, found, environ=os.environ, signals=inbox)
        if verdict is None:
            # A signal has asked for the end. No socket is open and no child runs yet.
            log.info("stopped", exit_status=int(ExitCode.OK))
            return ExitCode.OK
        if "problems" in verdict:
            raise ConfigError([Problem(**problem) for problem in verdict["problems"]], str(found) if found else None)
        settings = config.of_document(verdict["settings"])
        control = file.control_path(settings.control.socket, os.environ, os.geteuid())
        if settings.control.socket is None:
            file.make_control_folder(control, os.geteuid())
        log.configure(format=settings.log.format, level=settings.log.level)
        # Search and judging both warn about a file that was named.
        warnings = tuple(dict.fromkeys((*warnings, *verdict["warnings"])))
        for warning in warnings:
            log.warning("settings_warning", message=warning)
        log.info("settings_read", file=found or "built-in defaults")
        # From here on nothing depends on the folder in which poold was started, or on the rights to
        # that folder.
        os.chdir("/")
        os.umask(0o077)
        return Master(
            Current(settings, config.People(**verdict["people"]), warnings=warnings),
            inbox=inbox,
            passed=passed,
            file=found,
            control=str(control),
            environ=os.environ,
            origin=origin,
        ).run()
    except (ConfigError, OSError, LookupError) as error:
        return _refuse(error)


def check(arguments: argparse.Namespace) -> int:
    """Check the settings, then import the handler as a mold would."""
    from poold.probe import import_handler
    from poold.settings import judge
    from poold.settings.people import people

    try:
        loaded = judge.read(arguments.file, os.environ)
    except ConfigError as error:
        return _refuse(error)
    for warning in loaded.warnings:
        complain(f"poold: warning: {warning}")
    reason, printed = import_handler(loaded.config, people(loaded.config.server), os.environ)
    if printed:
        complain(printed.rstrip("\n"))
    if reason is not None:
        complain(f"poold: {loaded.file or 'built-in defaults'}: server.handler: {reason}")
        return ExitCode.FAILED
    if arguments.print:
        say(judge.effective(loaded.config).rstrip("\n"))
    else:
        say(f"{loaded.file or 'built-in defaults'}: good")
    return ExitCode.OK


def example(arguments: argparse.Namespace) -> int:
    """Print the settings file that the package carries."""
    say(Path(__file__).with_name("poold.toml").read_text(encoding="utf-8").rstrip("\n"))
    return ExitCode.OK


def _refuse(error: ConfigError | OSError | LookupError) -> int:
    priority = "<3>" if is_journal(2) else ""
    if isinstance(error, ConfigError):
        for problem in error.problems:
            complain(f"{priority}poold: {error.file + ': ' if error.file else ''}{problem}")
    else:
        complain(f"{priority}poold: {error}")
    return ExitCode.FAILED


def _places(arguments: argparse.Namespace) -> list[Path]:
    """Return the paths at which the daemon may listen.

    These are the path of --socket, the path of the settings, or the default candidates.
    """
    if arguments.socket is not None:
        return [arguments.socket]
    from poold.settings import file as settings
    from poold.settings import judge

    candidates = settings.control_candidates(os.environ, os.geteuid())
    try:
        file, text, _ = settings.find(arguments.file, os.environ)
        chosen = judge.load(text, file).control.socket
    except ConfigError as error:
        # The daemon runs with the settings of its last start or reload, and may listen at a default
        # path.
        _refuse(error)
        return candidates
    return [Path(chosen)] if chosen is not None else candidates


def _ask_daemon(arguments: argparse.Namespace, request: dict[str, object], *, seconds: float) -> dict[str, Any] | None:
    """Ask the daemon. Return None where no daemon answers, which has been printed then."""
    from poold import rpc

    try:
        answer, fds = rpc.call(_places(arguments), request, timeout=seconds)
    except rpc.UnreachableError as error:
        complain(f"poold: no daemon answers ({error})")
        return None
    except ConfigError as error:
        _refuse(error)
        return None
    for fd in fds:
        os.close(fd)
    return answer


def reload(arguments: argparse.Namespace) -> int:
    """Ask for a reload and print the result."""
    from poold import report

    answer = _ask_daemon(arguments, {"verb": "reload", "dry_run": arguments.dry_run}, seconds=RELOAD_SECONDS)
    if answer is None:
        return ExitCode.UNREACHABLE
    return _result(answer, report.reloaded)


def upgrade(arguments: argparse.Namespace) -> int:
    """Ask for an upgrade and print the result."""
    from poold import report

    answer = _ask_daemon(arguments, {"verb": "upgrade"}, seconds=RELOAD_SECONDS)
    if answer is None:
        return ExitCode.UNREACHABLE
    return _result(answer, report.upgraded)


def _result(answer: dict[str, Any], sentence: Callable[[dict[str, Any]], str]) -> int:
    """Print the result of a reload or an upgrade."""
    if answer["ok"]:
        say(sentence(answer))
        return ExitCode.OK
    for line in answer.get("problems", [answer["error"]]):
        complain(f"poold: {answer['file'] + ': ' if 'file' in answer else ''}{line}")
    return ExitCode.FAILED


def stop(arguments: argparse.Namespace) -> int:
    """End the daemon and wait until the daemon is gone."""
    from poold import report

    answer = _ask_daemon(arguments, {"verb": "stop", "now": arguments.now}, seconds=ASK_SECONDS)
    if answer is None:
        return ExitCode.UNREACHABLE
    report.watch_end(_places(arguments), int(answer["pid"]))
    return ExitCode.OK


def status(arguments: argparse.Namespace) -> int:
    """Print one screen with the daemon's state."""
    return _show_view(arguments, "status")


def ps(arguments: argparse.Namespace) -> int:
    """Print the child table."""
    return _show_view(arguments, "ps")


def _show_view(arguments: argparse.Namespace, what: str) -> int:
    from poold import report
    from poold.rpc import UnreachableError

    try:
        view = report.fetch(_places(arguments), statuses=what == "ps")
    except UnreachableError as error:
        complain(f"poold: no daemon answers ({error})")
        return ExitCode.UNREACHABLE
    except ConfigError as error:
        _refuse(error)
        return ExitCode.UNREACHABLE
    printer = report.status if what == "status" else report.children
    say(printer(view, as_json=arguments.json))
    return ExitCode.OK

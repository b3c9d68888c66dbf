"""What a process of poold may do and is told, seen from outside: rights, variables, files, modules, signals."""

import ast
import json
import os
import pwd
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from poold.master.engine.signals import FATAL, JOB_CONTROL, UNCATCHABLE
from tests.childkit import spares_of
from tests.faultkit import said
from tests.needs import needs_root
from tests.procfs import signal_masks, status_fields
from tests.support import HANDLERS, Daemon, Poold
from tests.test_architecture import MODULES, PACKAGE, TREES, name_of
from tests.waiting import eventually

NOBODY = pwd.getpwnam("nobody")
# What `poold.handlers.chat` and its like get of the master's own variables; the last is for the mold's own interpreter.
KEPT = {"PATH", "HOME", "LANG", "TZ", "USER", "LOGNAME", "SHELL", "LD_BIND_NOW"}
# As root with groups and inheritable capabilities, as a careless parent leaves them (capabilities(7), capset(2)).
GENEROUS = """
import ctypes, struct
os.setgroups([0, 4, 27])
header, data = struct.pack("Ii", 0x20080522, 0), bytearray(24)
libc = ctypes.CDLL(None, use_errno=True)
libc.capget(header, (ctypes.c_char * 24).from_buffer(data))
words = list(struct.unpack("6I", bytes(data)))
words[2], words[5] = words[1], words[4]
assert libc.capset(header, struct.pack("6I", *words)) == 0
"""


def of_nobody(poold: Poold, handler: str = "whoami:serve", **options: object) -> Daemon:
    """Make a daemon whose children run as nobody."""
    daemon = poold(options={"server.handler": handler, "server.user": "nobody", "pool.min_spare": 1, "pool.max_spare": 1, **options})
    daemon.let_others_in()
    return daemon


def every_kind(daemon: Daemon) -> dict[str, int]:
    """Return a pid of each kind of child that lasts: mold, exporter, spare."""
    found = {row["kind"]: row["pid"] for row in daemon.children() if row["kind"] in ("mold", "exporter")}
    return {**found, "spare": spares_of(daemon, 1)[0]}


# Rights.


@needs_root
def test_rights_of_each_process(poold: Poold) -> None:
    """Mold, spare, session and exporter are the user in all four ids, have no group of root's and no capability, and the master is root."""
    daemon = of_nobody(poold, "poold.handlers.echo:serve").start(prelude=GENEROUS)
    assert int(status_fields(daemon.master)["CapInh"], 16) > 0
    assert "27" in status_fields(daemon.master)["Groups"].split()
    with daemon.connect() as client:
        assert client.ask("hello") == "hello"
        [serving] = eventually(lambda: [row["pid"] for row in daemon.children("worker") if row["state"] == "serving"])
        pids = {**every_kind(daemon), "session": serving}
        for kind, pid in pids.items():
            found = status_fields(pid)
            assert found["Uid"].split() == [str(NOBODY.pw_uid)] * 4, kind
            assert found["Gid"].split() == [str(NOBODY.pw_gid)] * 4, kind
            assert set(found["Groups"].split()) == set(map(str, os.getgrouplist("nobody", NOBODY.pw_gid))), kind
            assert {name: int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == dict.fromkeys(
                ("CapInh", "CapPrm", "CapEff", "CapAmb"), 0
            ), kind
    assert status_fields(daemon.master)["Uid"].split() == ["0"] * 4


@needs_root
@pytest.mark.parametrize(
    "attempt",
    [
        "os.setuid(0)",
        "os.seteuid(0)",
        "os.setresuid(0, 0, 0)",
        "os.setresuid(-1, -1, 0)",
        "os.setgid(0)",
        "os.setresgid(-1, 0, -1)",
        "os.setgroups([0])",
        "os.setgroups([])",
        "os.chown('/', 0, 0)",
    ],
)
def test_no_way_back_to_root(poold: Poold, attempt: str) -> None:
    """A session of another user cannot become root again, by no id and by no group."""
    daemon = of_nobody(poold, "climber:serve").start()
    with daemon.connect() as client:
        assert client.ask(attempt) == "PermissionError"


@needs_root
def test_groups_that_cannot_be_given_up(poold: Poold) -> None:
    """Where groups cannot be given up there is no mold, rather than one that serves with them."""
    forbid = "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.prctl(24, 6, 0, 0, 0) == 0"
    # PR_CAPBSET_DROP, CAP_SETGID: the program that poold becomes has no right to it any more (capabilities(7)).
    daemon = of_nobody(poold, **{"metrics.listen": ""}).start(wait=False, prelude=forbid)
    assert daemon.wait() != 0
    assert "Operation not permitted" in daemon.log.read_text()


# Variables.


def test_variables_of_each_process(poold: Poold) -> None:
    """No child has more of the master's variables than a few that are harmless, also not where only /proc shows them."""
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "x",
        "DATABASE_URL": "x",
        "CREDENTIALS_DIRECTORY": "/run/credentials/x",
        "WATCHDOG_USEC": "60000000",
        "FDSTORE": "4",
        "INVOCATION_ID": "x",
        "PYTHONSTARTUP": "/tmp/x.py",
        "LD_PRELOAD_NOT": "x",
        "LC_ALL": "C.UTF-8",
    }
    daemon = poold(options={"pool.min_spare": 1, "pool.max_spare": 1, "server.environment": {"MINE": "1"}})
    daemon.start(environ=secrets)
    with daemon.connect() as client:
        given = json.loads(client.ask("facts"))["environ"]
        pids = {**every_kind(daemon), "session": int(client.ask("pid"))}
        for kind, pid in pids.items():
            names = {
                variable.partition(b"=")[0].decode() for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if variable
            }
            assert {name for name in names if not name.startswith("LC_")} <= KEPT | {"MINE"}, kind
        assert {name for name in given if not name.startswith("LC_")} <= KEPT - {"LD_BIND_NOW"} | {"MINE"}
        assert (given["MINE"], given["LC_ALL"]) == ("1", "C.UTF-8")


# Files.


@pytest.mark.parametrize(("umask", "file", "folder"), [(None, 0o600, 0o700), ("0027", 0o640, 0o750)])
def test_files_of_a_handler(poold: Poold, umask: str | None, file: int, folder: int) -> None:
    """What a handler makes is its user's alone unless the settings say otherwise, whatever umask poold was started with."""
    daemon = poold(options={"server.handler": "attacker:serve", "server.umask": umask}).start(prelude="os.umask(0)")
    place = daemon.folder / "made"
    with daemon.connect() as client:
        assert said(client, f"os.mkdir({str(place)!r}); os.close(os.open({str(place / 'file')!r}, os.O_CREAT | os.O_WRONLY, 0o777))") == []
    # The mode that was asked for had every bit.
    assert stat.S_IMODE(place.stat().st_mode) == folder
    assert stat.S_IMODE((place / "file").stat().st_mode) & 0o666 == file


def test_files_of_poold_itself(poold: Poold) -> None:
    """Of what poold makes itself, only what the settings open is open to others, whatever umask it was started with."""
    daemon = poold()
    place = daemon.folder / "own.sock"
    daemon.write(options={}, settings=f'[[listener]]\naddress = "unix://{place}"\nname = "own"\nmode = "0606"\n')
    daemon.start(prelude="os.umask(0)", laws=False)
    assert stat.S_IMODE(daemon.control.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.stat().st_mode) == 0o606


# Modules.


def test_planted_modules(poold: Poold) -> None:
    """Modules that lie in the working directory or in the handler's folder take nobody's place, in no process, whatever is imported."""
    daemon = poold()
    place = daemon.folder / "handlers"
    place.mkdir()
    (place / "served.py").write_text((HANDLERS / "cases.py").read_text())
    told = daemon.folder / "told"
    for name in ("json", "socket", "signal", "errno", "random", "traceback", "poold", "pydantic", "prometheus_client", "tomllib"):
        for folder in (daemon.folder, place):
            (folder / f"{name}.py").write_text(f"open({str(told)!r}, 'a').write(__file__ + '\\n')\n")
    daemon.write(options={"server.handler": "served:serve", "server.path": [str(place)]})
    # As `poold` itself is run; `python -m` would look into the working directory by its own will (python(1), -P).
    daemon.start(environ={"PYTHONSAFEPATH": "1"})
    with daemon.connect() as client:
        client.send(b"raise error\n")
        client.rest()
    daemon.event("handler_failed")
    for command in ("check", "status", "ps", "reload", "upgrade"):
        line = [sys.executable, "-P", "-m", "poold", command, *([] if command == "check" else ["--socket", str(daemon.control)])]
        done = subprocess.run(line, cwd=daemon.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    with daemon.connect() as client:
        assert client.ask("echo hello") == "hello"
    daemon.metrics()
    assert not told.exists(), told.read_text()


# What the text itself must never have.

DESERIALISERS = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "yaml", "jsonpickle", "xmlrpc", "multiprocessing"}


def imported(path: Path) -> Iterator[str]:
    """Yield the first names of all that a module imports, anywhere in it."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", sorted(TREES), ids=name_of)
def test_nothing_is_made_from_what_others_say(path: Path) -> None:
    """No module can turn bytes into code or objects: no pickle and its like, no eval, exec or compile."""
    assert not DESERIALISERS & set(imported(path))
    built_in = {node.func.id for node in ast.walk(TREES[path]) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not {"eval", "exec", "compile", "__import__"} & built_in


def test_one_function_takes_the_master_s_signals() -> None:
    """In the master one function alone is ever given to signal.signal(), besides the default; its body notes, and calls nothing else."""
    given, notes = set(), []
    for path in MODULES:
        if PACKAGE / "master" not in path.parents:
            continue
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("signal.signal", "signal.sigaction", "signal.siginterrupt"):
                given.add((name_of(path), ast.unparse(node.args[1])))
            if isinstance(node, ast.FunctionDef) and node.name == "_on_signal" and name_of(path) == "poold.master.engine.signals":
                notes.append(node)
    assert given == {("poold.master.engine.signals", "signal.SIG_DFL"), ("poold.master.engine.signals", "self._on_signal")}
    [note] = notes
    called = {ast.unparse(node.func) for node in ast.walk(note) if isinstance(node, ast.Call)}
    assert called == {"self._pending.add"}


def test_signals_that_the_master_takes(poold: Poold) -> None:
    """The running master catches every signal but those that are fatal or a terminal's, ignores none and blocks none."""
    daemon = poold().start()
    wanted = sum(1 << number - 1 for number in signal.valid_signals() - UNCATCHABLE - JOB_CONTROL - FATAL)
    masks = signal_masks(daemon.master)
    assert masks["SigCgt"] & wanted == wanted
    assert masks["SigBlk"] == 0
    assert masks["SigIgn"] & (1 << signal.NSIG - 1) - 1 & ~(0b11 << 31) == 0

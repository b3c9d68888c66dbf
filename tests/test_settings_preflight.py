"""What of the settings depends on the machine: accounts, folders, programs, sockets, interfaces, host names."""

import grp
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poold.address import Address
from poold.errors import ConfigError, Problem
from poold.master.clients import sockets
from poold.settings import preflight
from poold.settings.config import Config
from poold.settings.fields import shown
from poold.settings.judge import effective, load, prepare
from poold.settings.lines import dotted
from tests.needs import needs_root

FILE = Path("/etc/poold.toml")
ENVIRON = {"PATH": "/usr/bin:/bin"}


def check(config: Config, environ: dict[str, str]) -> list[Problem]:
    """Return what this machine lacks for settings."""
    return [Problem(dotted(path), message) for path, message in preflight.survey(config, environ)]


def resolve(config: Config) -> Config:
    """Return settings whose hosts are addresses, or raise ConfigError."""
    config, unresolved = preflight.resolved(config)
    if unresolved:
        raise ConfigError([Problem(dotted(path), message) for path, message in unresolved])
    return config


def found(text: str) -> dict[str, str]:
    """Return what this machine lacks for the settings of a text, by key."""
    return {problem.key: problem.message for problem in check(load(text.encode(), FILE), ENVIRON)}


def prepared(text: str) -> Config:
    """Return the settings of a text, if this machine lacks nothing for them."""
    served = "" if "[server]" in text else '\n[server]\nhandler = "mypackage.chat:serve"\n'
    return prepare((text + served).encode(), FILE, environ=ENVIRON)


def problems(text: str) -> list[Problem]:
    """Return all that is wrong with a text and with this machine for it."""
    with pytest.raises(ConfigError) as caught:
        prepared(text)
    return caught.value.problems


def test_what_the_machine_lacks_is_found_in_the_same_pass() -> None:
    """A mistake in the text does not hide a missing user, folder, program or host."""
    text = (
        '[pool]\nmax_children = 0\n[server]\nuser = "no-such-user"\ncommand = ["no-such-program"]\npath = [".", "/no/such"]\n'
        '[[listener]]\naddress = "tcp://no-such-host.invalid:80"\nbacklog = 0\n'
    )
    assert [(problem.key, problem.line) for problem in problems(text.replace('"."', '"gone"'))] == [
        ("pool.max_children", 2),
        ("server.user", 4),
        ("server.command[1]", 5),
        ("server.path[1]", 6),
        ("server.path[2]", 6),
        ("listener[1].address", 8),
        ("listener[1].backlog", 9),
    ]


@pytest.fixture
def not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without privileges, whose uid is 12345."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(os, "getegid", lambda: 12345)
    monkeypatch.setattr(os, "getgroups", list)


def accounts(user: str, group: str) -> str:
    """Return settings that name a user and a group wherever one can be named."""
    return (
        f'[server]\nuser = "{user}"\ngroup = "{group}"\ngroups = ["{group}"]\n'
        f'[[listener]]\naddress = "unix:///tmp/x.sock"\nowner = "{user}"\ngroup = "{group}"\n'
    )


NO_ACCOUNT = ["no-such-account", "0day", "-1", "4000000000", "99999999999999999999", "9" * 5000, "\u0661", "root ", "ROOT", "+0", "0x0"]


@pytest.mark.parametrize("name", NO_ACCOUNT)
def test_an_account_that_does_not_exist_is_never_another(name: str) -> None:
    """A user or group that is not there is a problem, whatever its name looks like; above all it is not root."""
    assert {"server.user", "server.group", "server.groups[1]", "listener[1].owner", "listener[1].group"} == set(found(accounts(name, name)))


@needs_root
@pytest.mark.parametrize("account", ["nobody", str(pwd.getpwnam("nobody").pw_uid)])
def test_root_can_be_anybody(account: str) -> None:
    """For root, any account that exists will do, by name or by number."""
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid)
    assert found(accounts(account, group.gr_name)) == {}
    assert found(accounts(account, str(group.gr_gid))) == {}


def test_only_root_can_be_somebody_else(not_root: None) -> None:
    """Without privileges, whom poold cannot become or give a socket to is a problem."""
    assert found(accounts("root", "root")) == {
        "server.user": "only root can run children as another user: leave this out, or start poold as root",
        "server.group": "only root can run children as another group: leave this out, or start poold as root",
        "server.groups": "only root can change groups: leave this out, or start poold as root",
        "listener[1].owner": "only root can give a socket away: leave this out, or start poold as root",
        "listener[1].group": "only root can give a socket to this group: leave this out, or start poold as root",
    }


def test_everybody_can_be_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without privileges, the account that poold has already is no problem."""
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(os, "geteuid", lambda: nobody.pw_uid)
    monkeypatch.setattr(os, "getegid", lambda: nobody.pw_gid)
    monkeypatch.setattr(os, "getgroups", lambda: [nobody.pw_gid])
    assert found(accounts("nobody", str(nobody.pw_gid))) == {}


def test_folders_exist(tmp_path: Path) -> None:
    """The folders of the handler and of the children are folders."""
    (tmp_path / "file").touch()
    text = f'[server]\npath = ["{tmp_path}", "{tmp_path}/no", "{tmp_path}/file"]\nworking_directory = "{tmp_path}/file/x"'
    assert {
        "server.path[2]": f"the folder {shown(f'{tmp_path}/no')} cannot be used: no such file or directory",
        "server.path[3]": f"{shown(f'{tmp_path}/file')} is a regular file, not a folder",
        "server.working_directory": f"the folder {shown(f'{tmp_path}/file/x')} cannot be used: not a directory",
    } == found(text)


@pytest.mark.parametrize(
    ("command", "right"),
    [
        ("/bin/sh", True),
        ("sh", True),
        ("{}/run", True),
        ("{}/data", False),
        ("{}", False),
        ("{}/missing", False),
        ("no-such-program", False),
        ("run", False),
    ],
)
def test_the_command_can_be_executed(tmp_path: Path, command: str, right: bool) -> None:
    """A command is an executable file, named by its path or found on the PATH that children get."""
    (tmp_path / "run").touch(mode=0o755)
    (tmp_path / "data").touch(mode=0o644)
    text = f'[server]\ncommand = ["{command.format(tmp_path)}"]\npath = []'
    assert right == (found(text) == {})
    assert found(f'[server]\ncommand = ["run"]\npath = []\nenvironment.PATH = "/x:{tmp_path}"') == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.absolute, None),
        (lambda place: place.touch(), "is a regular file, not a socket"),
        (lambda place: place.mkdir(), "is a folder, not a socket"),
        (lambda place: place.symlink_to("s"), "is a symbolic link, not a socket"),
        (lambda place: place.parent.rmdir(), "cannot be used: no such file or directory"),
        (lambda place: (place.parent.rmdir(), place.parent.touch()), "is a regular file, not a folder"),
    ],
)
@pytest.mark.parametrize("key", ["listener[1].address", "control.socket"])
def test_where_a_socket_can_be(tmp_path: Path, key: str, make: Callable[[Path], object], message: str | None) -> None:
    """A unix socket's folder exists, and at its place there is nothing or a socket."""
    place = tmp_path / "d" / "s"
    place.parent.mkdir()
    make(place)
    text = f'[[listener]]\naddress = "unix://{place}"' if key.startswith("listener") else f'[control]\nsocket = "{place}"'
    if message is None:
        assert found(text) == {}
    else:
        assert message in found(text)[key]


def test_a_socket_may_be_there_already(tmp_path: Path) -> None:
    """A socket that is in the place already may be stale: whether it lives is seen when it is bound."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    assert found(f'[[listener]]\naddress = "unix://{tmp_path}/s"') == {}


def test_a_socket_needs_a_folder_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which poold may make nothing is a problem."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "poold may not make a socket" in found(f'[[listener]]\naddress = "unix://{tmp_path}/s"')["listener[1].address"]


def test_the_control_socket_has_a_short_path() -> None:
    """The kernel takes 107 bytes of a unix socket's path, counted once the path is absolute."""
    assert found(f'[control]\nsocket = "{"x" * 103}"') == {"control.socket": "the path has 108 bytes; a unix socket's has at most 107"}


def test_interfaces_exist() -> None:
    """An interface to listen on is there."""
    assert found('[[listener]]\ninterface = "lo"') == {}
    assert found('[[listener]]\ninterface = "none0"') == {"listener[1].interface": 'there is no such interface here: "none0"'}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that knows two names."""
    known = {"two.example": ["192.0.2.1", "2001:db8::1"], "six.example": ["2001:db8::1"]}

    def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, socket.SOCK_STREAM, 6, "", (address, port)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_a_host_name_becomes_one_address(names: None) -> None:
    """Each host name is replaced by the first address it has, and the listener keeps the name that was written."""
    text = '[[listener]]\naddress = "tcp://two.example:80"\n[[listener]]\naddress = "unix:///x"\n[metrics]\nlisten = "tcp://six.example:81"'
    config = resolve(load(text.encode(), FILE))
    assert [Address.parse("tcp://192.0.2.1:80"), Address.parse("unix:///x")] == [listener.address for listener in config.listeners]
    assert Address.parse("tcp://[2001:db8::1]:81") == config.metrics.listen
    assert config.listeners[0].name == "tcp://two.example:80"
    assert config == load(effective(config).encode(), FILE)
    assert config == resolve(config)


def test_a_host_that_has_no_address_is_a_problem(names: None) -> None:
    """A host name that cannot be resolved is a problem with key and line, and so is each other one."""
    text = '[[listener]]\naddress = "tcp://no.example:80"\n[metrics]\nlisten = "tcp://neither.example:81"\n'
    message = "the host {} cannot be resolved: name or service not known"
    expected = [
        Problem("listener[1].address", message.format('"no.example"'), 2),
        Problem("metrics.listen", message.format('"neither.example"'), 4),
    ]
    assert expected == problems(text)
    with pytest.raises(ConfigError) as caught:
        resolve(load(text.encode(), FILE))
    assert [Problem(problem.key, problem.message) for problem in expected] == caught.value.problems


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b", "\udcff".encode("utf-8", "replace").decode(), "a b"])
def test_a_host_that_is_no_name_is_a_problem(host: str) -> None:
    """What cannot be a host name does not make the resolver fail in a way of its own."""
    (problem,) = problems(f'[[listener]]\naddress = "tcp://{host}:80"\nname = "x"')
    assert problem.key == "listener[1].address"


def test_two_names_of_one_address_collide(names: None) -> None:
    """Listeners whose names turn out to be one address are a problem before they are bound."""
    listeners = '[[listener]]\naddress = "tcp://six.example:80"\n[[listener]]\naddress = "tcp://[2001:db8::1]:80"\n'
    (problem,) = problems(listeners)
    assert Problem("listener[2].address", "is tcp://[2001:db8::1]:80, as listener[1] is already", 4) == problem
    metrics = '[[listener]]\naddress = "tcp://six.example:80"\n[metrics]\nlisten = "tcp://[2001:db8::1]:80"\n'
    (problem,) = problems(metrics)
    assert Problem("metrics.listen", "is tcp://[2001:db8::1]:80, as listener[1] is already", 4) == problem
    for text in (listeners, metrics):
        prepared(text.replace(":80", ":0"))


def test_localhost_is_this_machine() -> None:
    """The real resolver is asked for one literal address."""
    address = resolve(load(b'[[listener]]\naddress = "tcp://localhost:1"', FILE)).listeners[0].address
    assert address.host in ("127.0.0.1", "::1")


# What could not be bound together, known without binding.

BESIDE = [
    ("tcp://[::]:80", "tcp://127.0.0.1:80", True),
    ("tcp://[::]:80", "tcp://0.0.0.0:80", True),
    ("tcp://0.0.0.0:80", "tcp://127.0.0.1:80", True),
    ("tcp://[::1]:80", "tcp://[::]:80", True),
    ("tcp://[::1]:80", "tcp://[0::1]:80", True),
    ("tcp://[::1]:80", "tcp://0.0.0.0:80", False),
    ("tcp://127.0.0.1:80", "tcp://127.0.0.2:80", False),
    ("tcp://[::]:80", "tcp://127.0.0.1:81", False),
    ("tcp://[::]:0", "tcp://127.0.0.1:0", False),
    ("tcp://[::]:80", "systemd://web", False),
]


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize(("one", "other", "collide"), BESIDE)
def test_addresses_that_include_others(one: str, other: str, collide: bool, turn: int) -> None:
    """An address that is every address of its kind leaves none of them to another listener, or to the metrics, at the same port."""
    first, second = (one, other)[::turn]
    both = f'[[listener]]\naddress = "{first}"\n[[listener]]\naddress = "{second}"\n'
    if collide:
        (problem,) = problems(both)
        assert (problem.key, problem.line) == ("listener[2].address", 4)
        assert "listener[1]" in problem.message
    else:
        prepared(both)
    if second.startswith("tcp:"):
        metrics = f'[[listener]]\naddress = "{first}"\n[metrics]\nlisten = "{second}"\n'
        assert [problem.key for problem in (problems(metrics) if collide else ())] == ["metrics.listen"] * collide


@pytest.mark.parametrize(("one", "other", "collide"), [pair for pair in BESIDE if "systemd" not in pair[1] and ":0" not in pair[0][-2:]])
def test_the_kernel_agrees(one: str, other: str, collide: bool) -> None:
    """What is said to collide is what the kernel refuses to bind, and nothing else."""
    first, second = Address.parse(one), Address.parse(other)
    with sockets._bound(first.host, 0, backlog=1) as bound:
        port = bound.getsockname()[1]
        if first.port != second.port:
            return
        if collide:
            with pytest.raises(OSError, match="in use"):
                sockets._bound(second.host, port, backlog=1)
        else:
            sockets._bound(second.host, port, backlog=1).close()


def test_an_interface_of_ones_own_keeps_addresses_apart() -> None:
    """Two listeners with one address each on an interface of its own do not meet; without one of the interfaces they do."""
    text = '[[listener]]\naddress = "tcp://0.0.0.0:80"\ninterface = "{}"\n[[listener]]\naddress = "tcp://127.0.0.1:80"\ninterface = "{}"\n'
    config = resolve(load(text.format("one", "two").encode(), FILE))
    assert [listener.interface for listener in config.listeners] == ["one", "two"]
    with pytest.raises(ConfigError):
        resolve(load(text.format("one", "one").encode(), FILE))
    with pytest.raises(ConfigError):
        resolve(load(text.replace('interface = "{}"\n', "", 1).format("two").encode(), FILE))


def test_one_socket_file_for_two(tmp_path: Path) -> None:
    """Two sockets at one place are a problem, however the place is written: twice the slash, through a link, or as the control socket."""
    (tmp_path / "link").symlink_to(tmp_path)
    for other in (f"{tmp_path}//x.sock", f"{tmp_path}/./x.sock", f"{tmp_path}/link/x.sock"):
        text = f'[[listener]]\naddress = "unix://{tmp_path}/x.sock"\n[[listener]]\naddress = "unix://{other}"\nname = "other"\n'
        (problem,) = problems(text)
        assert Problem("listener[2].address", f"is the file {shown(f'{tmp_path}/x.sock')}, as listener[1].address is already", 4) == problem
    (problem,) = problems(f'[[listener]]\naddress = "unix://{tmp_path}/x.sock"\n[control]\nsocket = "{tmp_path}/link/x.sock"\n')
    assert (problem.key, problem.line) == ("control.socket", 4)
    prepared(f'[[listener]]\naddress = "unix://{tmp_path}/x.sock"\n[control]\nsocket = "{tmp_path}/link/y.sock"\n')


@needs_root
def test_a_port_for_the_privileged() -> None:
    """Without the capability for it a port below the first free one is a problem, of a listener or of the metrics; with it, it is none."""
    text = '[server]\nhandler = "a:b"\n[[listener]]\naddress = "tcp://127.0.0.1:{}"\n[metrics]\nlisten = "tcp://127.0.0.1:{}"\n'
    low, free = text.format(79, 80), text.format(0, 60000)
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from poold.settings.judge import verdict\n"
        # All is loaded that another user might not be able to read.
        "verdict(sys.argv[1].encode(), Path('/x.toml'), environ={})\n"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "print(*[problem['key'] for problem in verdict(sys.argv[1].encode(), Path('/x.toml'), environ={}).get('problems', ())])"
    )
    assert int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) > 80
    for settings, keys in ((low, ["listener[1].address", "metrics.listen"]), (free, [])):
        done = subprocess.run([sys.executable, "-c", program, settings], capture_output=True, text=True, check=True)
        assert done.stdout.split() == keys
        assert {problem.key for problem in check(load(settings.encode(), FILE), ENVIRON)} == set()


@needs_root
def test_nobody_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root without a user, on a machine where there is no nobody whom the exporter could run as, is told to name one."""
    known = pwd.getpwnam

    def getpwnam(name: str) -> pwd.struct_passwd:
        if name == "nobody":
            raise KeyError(name)
        return known(name)

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    assert "there is no user nobody here" in found("")["server.user"]
    assert found('[server]\nuser = "root"\n') == {}

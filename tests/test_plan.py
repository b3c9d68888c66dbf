"""What a reload would change, from one Config to another: tables of cases; pure."""

from typing import Any

import pytest

from poold.address import Address
from poold.master.change.plan import Plan, plan, shown
from poold.settings import judge
from poold.settings.config import Config

HANDLER = '[server]\nhandler = "cases:serve"\n'
# Where clients come to, in short.
PLACES = {"a": "tcp://127.0.0.1:1", "b": "tcp://127.0.0.1:2", "u": "unix:///run/u", "s": "systemd://s"}


def settings(text: str, *listeners: str) -> Config:
    """Return the settings of some keys and of listeners, each a place with its keys: `a backlog = 9`."""
    tables = [each.partition(" ") for each in listeners or ("a",)]
    written = "".join(f'[[listener]]\naddress = "{PLACES[place]}"\n{keys}\n' for place, _, keys in tables)
    return judge.load(f"{HANDLER}{text}\n{written}".encode(), None)


def places(found: list[str]) -> str:
    """Return addresses in short."""
    return "".join(name for address in found for name, place in PLACES.items() if place == address)


def described(steps: Plan, sessions: int = 0) -> dict[str, Any]:
    """Return a plan as an operator sees it, with places in short."""
    told = steps.describe(sessions=sessions)
    return {key: places(value) if key in ("opened", "closed", "kept") else value for key, value in told.items()}


# Listeners before and after, those whose address cannot be reached, and which are opened, closed and kept.
LISTENERS = {
    "the same": ("ab", "ab", "", "", "", "ab"),
    "in another order": ("ab", "ba", "", "", "", "ba"),
    "one more": ("a", "ab", "", "b", "", "a"),
    "one less": ("ab", "b", "", "", "a", "b"),
    "another one": ("a", "b", "", "b", "a", ""),
    "of another kind": ("au", "as", "", "s", "u", "a"),
    "one that is lost": ("au", "au", "u", "u", "u", "a"),
    "one that is lost, and not wanted any more": ("au", "a", "u", "", "u", "a"),
    "all lost": ("ab", "ab", "ab", "ab", "ab", ""),
    "something lost that is not open": ("a", "a", "u", "", "", "a"),
}


@pytest.mark.parametrize("case", LISTENERS)
def test_listeners(case: str) -> None:
    """Listeners are told apart by their addresses: what is new is opened, what is gone is closed, and what is lost is both."""
    before, after, lost, opened, closed, kept = LISTENERS[case]
    steps = plan(settings("", *before), settings("", *after), lost=frozenset(Address.parse(PLACES[place]) for place in lost))
    told = described(steps)
    assert (told["opened"], told["closed"], told["kept"]) == (opened, closed, kept)
    assert told["changes"] == []
    assert steps.problems == ()
    assert not steps.metrics_moved


# Keys before and after, and what an operator is told of the difference.
CHANGES = {
    "nothing": ("", "", []),
    "a number": ("[pool]\nmax_children = 5", "[pool]\nmax_children = 9", ["pool.max_children: 5 → 9"]),
    "a default": ("", "[timeouts]\nkill = 7", ["timeouts.kill: 5 → 7"]),
    "the same in other words": ('[timeouts]\nkill = "5s"', "[timeouts]\nkill = 5.0", []),
    "a key whose name Python keeps": ("", "[timeouts]\nimport = 61", ["timeouts.import: 60 → 61"]),
    "a word": ("", '[log]\nformat = "json"', ["log.format: text → json"]),
    "true and false": ("", "[pool]\npreload = false", ["pool.preload: true → false"]),
    "two tables": ("", '[pool]\nmin_spare = 2\n[log]\nlevel = "debug"', ["pool.min_spare: 4 → 2", "log.level: info → debug"]),
    "another metrics address": (
        "",
        '[metrics]\nlisten = "tcp://127.0.0.1:1234"',
        ["metrics.listen: tcp://127.0.0.1:9777 → tcp://127.0.0.1:1234"],
    ),
    "no metrics": ("", '[metrics]\nlisten = ""', ["metrics.listen: tcp://127.0.0.1:9777 → none"]),
    "options, which are the handler's own": ("[server.options]\nkey = 1", "[server.options]\nkey = 2", ["server.options"]),
    "variables, which may be secret": ("", '[server.environment]\nPASSWORD = "x"', ["server.environment"]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changes(case: str) -> None:
    """Each key whose value differs is told once, with both values, but for those that may hold a secret."""
    before, after, changes = CHANGES[case]
    steps = plan(settings(before), settings(after))
    assert described(steps)["changes"] == changes
    assert steps.metrics_moved is any(change.startswith("metrics.listen") for change in changes)
    assert steps.problems == ()
    assert described(steps)["kept"] == "a"


OWNED = "owner = 'nobody'"
BOTH = "owner = 'nobody'\ngroup = 'nogroup'"
# A listener before and after, what an operator is told, and the keys that no reload can change.
KEPT = {
    "nothing": ("a backlog = 9", "a backlog = 9", [], []),
    "the backlog": ("a backlog = 9", "a backlog = 10", ["backlog: 9 → 10"], []),
    "the name": ("a name = 'x'", "a name = 'y'", ["name: x → y"], []),
    "true and false": ("a", "a nodelay = false", ["nodelay: true → false"], []),
    "the mode": ("u mode = '0600'", "u mode = '0666'", ["mode: 384 → 438"], []),
    "the interface": ("a", "a interface = 'lo'", ["interface: none → lo"], ["interface"]),
    "freebind": ("a", "a freebind = true", ["freebind: false → true"], ["freebind"]),
    "interface and freebind": (
        "a",
        "a interface = 'lo'\nfreebind = true",
        ["freebind: false → true", "interface: none → lo"],
        ["interface", "freebind"],
    ),
    "a first owner": ("u", f"u {OWNED}", ["owner: none → nobody"], ["owner"]),
    "no owner any more": (f"u {OWNED}", "u", ["owner: nobody → none"], ["owner"]),
    "owner and group": ("u", f"u {BOTH}", ["owner: none → nobody", "group: none → nogroup"], []),
    "a group besides": (f"u {OWNED}", f"u {BOTH}", ["group: none → nogroup"], []),
    "another owner and group": (f"u {BOTH}", "u owner = 'root'\ngroup = 'root'", ["owner: nobody → root", "group: nogroup → root"], []),
}


@pytest.mark.parametrize("case", KEPT)
def test_a_listener_that_is_kept(case: str) -> None:
    """What changes of an open listener is told with its address, and what belongs to its socket is a problem that names the key."""
    before, after, changes, keys = KEPT[case]
    steps = plan(settings("", before), settings("", after))
    address = PLACES[after[0]]
    assert described(steps)["kept"] == after[0]
    assert described(steps)["changes"] == [f"listener {address} {change}" for change in changes]
    assert [problem.key for problem in steps.problems] == [f"listener {address} {key}" for key in keys]
    # On a listener that is opened anew, anything may be different.
    assert plan(settings("", before), settings("", after), lost=frozenset([Address.parse(address)])).problems == ()


ONE, TWO = '[control]\nsocket = "/run/one.sock"', '[control]\nsocket = "/run/two.sock"'


@pytest.mark.parametrize(("before", "after"), [(ONE, TWO), (ONE, ""), ("", ONE)])
def test_the_control_socket_stays(before: str, after: str) -> None:
    """The control socket's path is a problem wherever it differs, for the file may be in use by whoever asks."""
    (problem,) = plan(settings(before), settings(after)).problems
    assert problem.key == "control.socket"
    assert "restart" in problem.message


@pytest.mark.parametrize(("sessions", "over"), [(0, 0), (4, 0), (5, 0), (6, 1), (500, 495)])
def test_sessions_over_the_cap(sessions: int, over: int) -> None:
    """An operator who lowers the cap is told how many sessions are above it; none of them is ended."""
    assert described(plan(settings(""), settings("[pool]\nmax_children = 5")), sessions)["sessions_over_cap"] == over


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (30.0, "30"),
        (0.25, "0.25"),
        ("word", "word"),
        ("", ""),
        ((), "[]"),
        (("one", "two"), "[one, two]"),
        (Address.parse("unix:///run/x"), "unix:///run/x"),
    ],
)
def test_values_as_an_operator_writes_them(value: object, text: str) -> None:
    """A value is shown without Python's quotes, brackets and capitals."""
    assert shown(value) == text

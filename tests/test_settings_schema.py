"""The schema: what each setting takes, what it refuses and in which words, and the rules between settings."""

import math
import tomllib
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poold.address import Address
from poold.settings.annotations import YEAR
from poold.settings.config import CommandStyle, Config, LogFormat, LogLevel, WhenFull
from poold.settings.fields import seconds
from poold.settings.lines import dotted
from poold.settings.toml import validate

DURATION = 'must be a number of seconds or a text such as "250ms", "30s", "5m" or "2h"'


def tree(key: str, value: object) -> dict[str, Any]:
    """Return the tables in which one key is written; `listener.` is the only listener."""
    table, *keys = key.split(".")
    for inner in reversed(keys):
        value = {inner: value}
    return {table: [value] if table == "listener" and keys else value}


def problems(tables: dict[str, Any]) -> dict[str, str]:
    """Return what is wrong with some tables, by key."""
    return {dotted(path): message for path, message in validate(tables)[1]}


def config(tables: dict[str, Any]) -> Config:
    """Return the settings of some tables that are right."""
    found, findings = validate(tables)
    assert findings == []
    assert found is not None
    return found


def test_defaults() -> None:
    """Without a file the settings are those that poold promises."""
    config = Config()
    (listener,) = config.listeners
    assert tuple(getattr(config.server, each.name) for each in fields(config.server)) == (
        "poold.handlers.chat:serve",
        None,
        "inetd",
        {},
        {},
        (".",),
        None,
        None,
        None,
        0o077,
        "/",
    )
    assert (
        Address.parse("tcp://127.0.0.1:7777"),
        "tcp://127.0.0.1:7777",
        1024,
        0o660,
        None,
        None,
        60.0,
        90.0,
        True,
        False,
        None,
    ) == tuple(getattr(listener, each.name) for each in fields(listener))
    assert tuple(getattr(config.pool, each.name) for each in fields(config.pool)) == (256, 4, 16, 1, WhenFull.WAIT, "", True)
    assert (config.timeouts.startup, config.timeouts.import_, config.timeouts.kill) == (10.0, 60.0, 5.0)
    assert Address.parse("tcp://127.0.0.1:9777") == config.metrics.listen
    assert config.control.socket is None
    assert (config.log.format, config.log.level) == (LogFormat.TEXT, LogLevel.INFO)


def test_nothing_written_is_the_defaults() -> None:
    """Empty tables, and an empty array of listeners, are as good as none."""
    tables: dict[str, Any] = {name: {} for name in ("server", "pool", "timeouts", "metrics", "control", "log")}
    assert Config() == config({**tables, "listener": []}) == config({"listener": [{}]}) == config({})


def test_settings_cannot_be_changed() -> None:
    """A setting in force is never assigned to."""
    for table, name in ((Config(), "pool"), (Config().pool, "max_children"), (Config().listeners[0], "address")):
        with pytest.raises(FrozenInstanceError):
            setattr(table, name, getattr(table, name))


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("server.handler", "a.b_1:C.d", "a.b_1:C.d"),
        ("server.command", ["cat", "-u"], ("cat", "-u")),
        ("server.command_style", "inetd", CommandStyle.INETD),
        ("server.path", [], ()),
        ("server.path", ["a", "/b"], ("a", "/b")),
        ("server.user", "1000", "1000"),
        ("server.groups", [], ()),
        ("server.groups", ["a", "b"], ("a", "b")),
        ("server.umask", "0", 0),
        ("server.umask", "22", 0o022),
        ("server.umask", "0777", 0o777),
        ("server.options", {"a": [1, {"b": 1.5}], "c": None}, {"a": [1, {"b": 1.5}], "c": None}),
        ("server.environment", {"A": "", "LISTEN": "x", "é b": "=", "TZ": "UTC"}, {"A": "", "LISTEN": "x", "é b": "=", "TZ": "UTC"}),
        ("pool.max_children", 1, 1),
        ("pool.max_children", 65536, 65536),
        ("pool.max_spare", 65536, 65536),
        ("pool.connections_per_child", 0, 0),
        ("pool.when_full", "refuse", WhenFull.REFUSE),
        ("pool.refuse_message", "é" * 512, "é" * 512),
        ("pool.preload", False, False),
        ("timeouts.startup", 0.001, 0.001),
        ("timeouts.startup", "250ms", 0.25),
        ("timeouts.startup", 3, 3.0),
        ("timeouts.kill", "1.5h", 5400.0),
        ("metrics.listen", "tcp://[::]:0", Address.parse("tcp://[::]:0")),
        ("metrics.listen", "", None),
        ("control.socket", "x.sock", "x.sock"),
        ("log.format", "json", LogFormat.JSON),
        ("log.level", "error", LogLevel.ERROR),
    ],
)
def test_what_is_right_is_taken(key: str, written: object, value: object) -> None:
    """Each setting takes its whole range and is kept as the type that poold works with."""
    table, name = key.split(".")
    found = getattr(getattr(config(tree(key, written)), table), name)
    assert value == found
    assert type(value) is type(found)


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("address", "tcp://[::1]:80", Address.parse("tcp://[::1]:80")),
        ("name", "x" * 128, "x" * 128),
        ("backlog", 1, 1),
        ("keepalive", 0, 0.0),
        ("keepalive", 32767, 32767.0),
        ("user_timeout", "2m", 120.0),
        ("nodelay", False, False),
        ("freebind", True, True),
        ("interface", "eth0.100", "eth0.100"),
    ],
)
def test_what_is_right_is_taken_of_a_listener(key: str, written: object, value: object) -> None:
    """Each key of a TCP listener takes its whole range."""
    (listener,) = config(tree(f"listener.{key}", written)).listeners
    assert value == getattr(listener, key)


@pytest.mark.parametrize(
    ("key", "written", "message"),
    [
        ("server", 3, "must be a table, written [server], not 3"),
        ("pool", [{}], "must be a table, written [pool], not a list"),
        ("server.handler", "chat", 'must be "module:object", such as "mypackage.chat:serve", not the text "chat"'),
        ("server.handler", "a:b:c", 'must be "module:object", such as "mypackage.chat:serve", not the text "a:b:c"'),
        ("server.handler", "a-b:c", 'must be "module:object", such as "mypackage.chat:serve", not the text "a-b:c"'),
        ("server.handler", ".a:c", 'must be "module:object", such as "mypackage.chat:serve", not the text ".a:c"'),
        ("server.command", "cat", 'must be a list, each entry a text, in quotes, not the text "cat"'),
        ("server.command", [], "must have at least one entry, a text, in quotes"),
        ("server.command_style", "ucspi", 'must be "inetd" or "systemd", not the text "ucspi"'),
        ("server.user", 1000, "must be a name, in quotes, not 1000"),
        ("server.user", "", 'must be a name, in quotes, not the text ""'),
        ("server.umask", 0o77, 'must be octal digits up to "0777" in quotes, such as "0077", not 63'),
        ("server.umask", "0o77", 'must be octal digits up to "0777" in quotes, such as "0077", not the text "0o77"'),
        ("server.umask", "1777", 'must be octal digits up to "0777" in quotes, such as "0077", not the text "1777"'),
        ("server.working_directory", "a\0b", 'must be the path of a folder, not the text "a\\x00b"'),
        ("server.options", [], "must be a table: [server.options], not a list"),
        ("server.environment", "A=1", 'must be a table: [server.environment], not the text "A=1"'),
        ("listener", {}, "must be written [[listener]], with two brackets, once for each, not a table"),
        ("listener", [{}] * 65, "is written 65 times; at most 64 are possible"),
        ("pool.max_children", 0, "must be a whole number from 1 to 65536, not 0"),
        ("pool.max_children", 65537, "must be a whole number from 1 to 65536, not 65537"),
        ("pool.max_children", "12", 'must be a whole number from 1 to 65536, not the text "12"'),
        ("pool.max_children", True, "must be a whole number from 1 to 65536, not true"),
        ("pool.max_children", 2.0, "must be a whole number from 1 to 65536, not 2.0"),
        pytest.param("pool.max_children", 16**5000, "must be a whole number from 1 to 65536, not a number that large", id="16**5000"),
        ("pool.min_spare", -1, "must be a whole number from 0 to 65536, not -1"),
        ("pool.connections_per_child", 2**31, "must be a whole number from 0 to 2147483647, not 2147483648"),
        ("pool.when_full", "drop", 'must be "wait" or "refuse", not the text "drop"'),
        ("pool.refuse_message", "é" * 513, f'must be a text of at most 1024 bytes, not the text "{"é" * 39}…"'),
        ("pool.preload", "yes", 'must be true or false, not the text "yes"'),
        ("pool.preload", 1, "must be true or false, not 1"),
        ("timeouts.startup", 0, "must be above 0, not 0"),
        ("timeouts.import", "0s", 'must be above 0, not the text "0s"'),
        ("timeouts.kill", 10**400, "must be at most 31622400 seconds, not a number that large"),
        ("timeouts.kill", "8785h", 'must be at most 31622400 seconds, not the text "8785h"'),
        ("timeouts.kill", math.inf, "must be at most 31622400 seconds, not inf"),
        ("metrics.listen", "unix:///x", 'must be tcp://HOST:PORT, or "" for none'),
        ("metrics.listen", False, "must be a text such as tcp://HOST:PORT or unix:///PATH, not false"),
        ("control.socket", "", 'must be the path of a socket, not the text ""'),
        ("log.level", "trace", 'must be "debug", "info", "warning" or "error", not the text "trace"'),
        ("log.format", ["text"], 'must be "text" or "json", not a list'),
    ],
)
def test_what_is_wrong_is_refused(key: str, written: object, message: str) -> None:
    """A wrong value is refused with one message: what would be right, and what is there instead."""
    assert {key: message} == problems(tree(key, written))


@pytest.mark.parametrize(
    ("key", "written", "message"),
    [
        ("address", "tcp://127.0.0.1:x", "'x' is not a port; write a number from 0 to 65535"),
        ("address", 7777, "must be a text such as tcp://HOST:PORT or unix:///PATH, not 7777"),
        ("name", "", 'must be 1 to 128 bytes of printable text, not the text ""'),
        ("name", "a\x1b[2J", 'must be 1 to 128 bytes of printable text, not the text "a\\x1b[2J"'),
        ("name", "é" * 65, f'must be 1 to 128 bytes of printable text, not the text "{"é" * 39}…"'),
        ("backlog", 0, "must be a whole number from 1 to 2147483647, not 0"),
        ("keepalive", 32768, "must be at most 32767 seconds, not 32768"),
        ("user_timeout", "600h", 'must be at most 2147483 seconds, not the text "600h"'),
        ("interface", "a/b", 'must be the name of a network interface, not the text "a/b"'),
        ("interface", "x" * 16, f'must be the name of a network interface, not the text "{"x" * 16}"'),
    ],
)
def test_what_is_wrong_is_refused_of_a_listener(key: str, written: object, message: str) -> None:
    """The keys of a listener are refused in the same words, with the position of the listener from 1."""
    assert {f"listener[1].{key}": message} == problems(tree(f"listener.{key}", written))


@pytest.mark.parametrize(
    ("key", "entries", "found"),
    [
        (
            "server.command",
            ["cat", 3, ""],
            {"[2]": "must be a text, in quotes, not 3", "[3]": 'must be a text, in quotes, not the text ""'},
        ),
        ("server.path", [[]], {"[1]": "must be the path of a folder, not a list"}),
        ("server.groups", ["a", {}], {"[2]": "must be a name, in quotes, not a table"}),
        ("listener", [{}, 3], {"[2]": "must be a table, not 3"}),
    ],
)
def test_every_wrong_entry_of_a_list_is_named(key: str, entries: list[object], found: dict[str, str]) -> None:
    """Each wrong entry of a list is a problem with its own position, from 1."""
    assert {key + place: message for place, message in found.items()} == problems(tree(key, entries))


def test_durations_that_are_none() -> None:
    """What is no duration is refused, and the message shows the forms that are."""
    values: list[object] = [True, math.nan, -1, -0.5, -math.inf, "", "30", "s", "5 m", "1d", "-3s", "1e3s", "٣s", "3s\n", [], {}]
    for written in values:
        message = problems(tree("timeouts.kill", written))["timeouts.kill"]
        assert message.startswith(f"{DURATION}, not ")


@given(st.integers(0, 10**6), st.sampled_from([("ms", 1000.0), ("s", 1.0), ("m", 1 / 60), ("h", 1 / 3600)]))
def test_a_duration_with_a_unit_is_its_number_of_seconds(number: int, unit: tuple[str, float]) -> None:
    """A whole number and a unit are that many milliseconds, seconds, minutes or hours."""
    name, parts = unit
    assert math.isclose(number / parts, seconds(f"{number}{name}") or 0.0)


@given(st.one_of(st.integers(), st.floats(), st.text(max_size=12), st.from_regex(r"\A[0-9]{1,400}(\.[0-9]{1,3})?(ms|s|m|h)\Z")))
def test_a_duration_is_never_what_a_clock_cannot_bear(written: object) -> None:
    """Whatever is written as a deadline is refused, or becomes a finite number of seconds from 0 to a year."""
    found, findings = validate(tree("timeouts.kill", written))
    assert found is not None
    assert 0 < found.timeouts.kill <= YEAR
    assert not findings or found.timeouts.kill == 5.0


def test_a_command_takes_the_place_of_the_handler() -> None:
    """With a command there is no handler, and both are an error."""
    server = config({"server": {"command": ["cat"]}}).server
    assert (server.handler, server.command) == (None, ("cat",))
    both = {"server": {"command": ["cat"], "handler": "a:b"}}
    assert problems(both) == {"server.command": "cannot be written beside handler: keep one of the two"}


@pytest.mark.parametrize(
    ("pool", "found"),
    [
        ({"min_spare": 16}, {}),
        ({"min_spare": 0, "max_spare": 0}, {}),
        ({"max_children": 1}, {}),
        ({"max_spare": 3}, {"pool.max_spare": "must be at least min_spare, which is 4, not 3"}),
        ({"min_spare": 9, "max_spare": 8}, {"pool.max_spare": "must be at least min_spare, which is 9, not 8"}),
        ({"min_spare": 17}, {"pool.min_spare": "must be at most max_spare, which is 16 unless written, not 17"}),
        ({"min_spare": "x", "max_spare": 3}, {"pool.min_spare": 'must be a whole number from 0 to 65536, not the text "x"'}),
    ],
)
def test_spares(pool: dict[str, object], found: dict[str, str]) -> None:
    """At most as many spares are wanted as are kept; the cap may be below both; a wrong number is not compared."""
    assert found == problems({"pool": pool})


@pytest.mark.parametrize(
    ("address", "foreign"),
    [
        ("tcp://127.0.0.1:1", {"mode", "owner", "group"}),
        ("unix:///a", {"keepalive", "user_timeout", "nodelay", "freebind", "interface"}),
        ("systemd://a", {"backlog", "mode", "owner", "group", "freebind", "interface"}),
    ],
)
def test_keys_that_mean_nothing_for_a_listener(address: str, foreign: set[str]) -> None:
    """A key that does nothing for an address of this kind is an error, even if it says what is the default."""
    every = {
        "backlog": 1024,
        "mode": "0660",
        "owner": "root",
        "group": "root",
        "keepalive": 60,
        "user_timeout": 90,
        "nodelay": True,
        "freebind": False,
        "interface": "lo",
    }
    found = problems({"listener": [{"address": address, **every}]})
    assert {f"listener[1].{key}" for key in foreign} == set(found)
    assert all(message.endswith(f"only; this listener is {address.partition('/')[0]}//") for message in found.values())
    config({"listener": [{"address": address, **{key: value for key, value in every.items() if key not in foreign}}]})


def test_a_listener_is_named_by_its_address() -> None:
    """The name of a listener is its address as written, unless another is given."""
    listeners = config({"listener": [{"address": "tcp://localhost:0080"}, {"address": "unix:///a", "name": "b"}]}).listeners
    assert [listener.name for listener in listeners] == ["tcp://localhost:0080", "b"]


@pytest.mark.parametrize(
    ("second", "found"),
    [
        ({"address": "tcp://127.0.0.1:080"}, {"listener[2].address": "is that of listener[1] already"}),
        ({"address": "unix:///a", "name": "tcp://127.0.0.1:80"}, {"listener[2].name": "is that of listener[1] already"}),
        ({"address": "tcp://127.0.0.1:81"}, {}),
        ({"address": "tcp://[::1]:80"}, {}),
    ],
)
def test_listeners_differ(second: dict[str, object], found: dict[str, str]) -> None:
    """No two listeners have the same address or the same name."""
    assert found == problems({"listener": [{"address": "tcp://127.0.0.1:80"}, second]})


def test_metrics_do_not_take_a_listeners_address() -> None:
    """The metrics have an address of their own."""
    taken = {"listener": [{"address": "tcp://127.0.0.1:80"}], "metrics": {"listen": "tcp://127.0.0.1:80"}}
    assert problems(taken) == {"metrics.listen": "is that of listener[1] already"}
    taken = {"listener": [{"address": "tcp://127.0.0.1:9777"}]}
    assert problems(taken) == {"listener[1].address": "is that of metrics.listen, unless that is written too"}
    assert problems({**taken, "metrics": {"listen": ""}}) == {}


def test_options_travel_as_json() -> None:
    """What JSON cannot say is refused, however deep in the options it stands."""
    tables = tomllib.loads("[server.options]\na = 1979-05-27\nb = [1, { c = nan, t = 07:32:00 }]\nd = 0xffff_ffff_ffff_ffff_f\ne = 1")
    assert list(problems(tables)) == ["server.options.a", "server.options.b[2].c", "server.options.b[2].t", "server.options.d"]


@pytest.mark.parametrize("name", ["", "A=B", "A\0", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC"])
def test_variables_that_cannot_be_set(name: str) -> None:
    """A name that no variable can have, and those by which a service manager speaks to poold, are refused."""
    assert [f"server.environment.{name}" if name.isidentifier() else dotted(("server", "environment", name))] == list(
        problems({"server": {"environment": {name: "x"}}})
    )


@pytest.mark.parametrize("value", [1, True, ["x"], "a\0b"])
def test_variables_are_texts(value: object) -> None:
    """A variable is a text that the kernel can pass on."""
    assert list(problems({"server": {"environment": {"A": value, "B": "right"}}})) == ["server.environment.A"]

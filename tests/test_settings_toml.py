"""From bytes to settings and back: every problem with key and line, and the file that documents every key."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poold.errors import ConfigError, Problem
from poold.settings.annotations import Setting, settings_of
from poold.settings.config import Config
from poold.settings.fields import reader_of
from poold.settings.judge import effective, load
from poold.settings.toml import NOT_YET

TABLES: dict[str, tuple[Setting, ...]] = {each.key: settings_of(each.table) for each in settings_of(Config) if each.table}
SCHEMA = {table: {setting.key: setting.default for setting in settings} for table, settings in TABLES.items()}
REFERENCE = (Path(__file__).parent.parent / "poold.toml").read_text()
FILE = Path("/etc/poold.toml")


def judged(data: bytes) -> Config | list[Problem]:
    """Return the settings that some bytes describe, or their problems."""
    try:
        return load(data, FILE)
    except ConfigError as error:
        return error.problems


def problems(text: str | bytes) -> list[Problem]:
    """Return the problems of a text."""
    with pytest.raises(ConfigError) as caught:
        load(text.encode() if isinstance(text, str) else text, FILE)
    assert str(FILE) == caught.value.file
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a = 1\nb = \n", 2, "syntax error in column 5: invalid value"),
        ("[pool\n", 1, "syntax error in column 6: expected ']' at the end of a table declaration"),
        ("[pool]\nmax_spare = 1\nmax_spare = 2\n", 3, "syntax error in column 14: this key is written a second time"),
        ("[pool]\n\n[pool]\n", 3, "syntax error in column 6: cannot declare ('pool',) twice"),
        ("a = [\n1,\n", 3, "syntax error at the end of the file: invalid value"),
        (b"a = 1\n# \xe9\n", 2, "byte 0xe9 is not UTF-8: save the file as UTF-8"),
        ("a = " + "[" * 100_000, None, "syntax error: brackets are nested too deeply"),
    ],
)
def test_a_syntax_error_is_one_problem_with_its_place(text: str | bytes, line: int | None, message: str) -> None:
    """What is no TOML is one problem with its line and column."""
    assert [Problem("", message, line)] == problems(text)


def test_a_number_of_too_many_digits_is_a_problem() -> None:
    """A number that Python refuses to read is a problem like any other."""
    (problem,) = problems("a = " + "9" * 5000)
    assert problem.message.startswith("syntax error: ")


def test_a_byte_order_mark_is_no_mistake() -> None:
    """A file that an editor marked as UTF-8 is read."""
    assert load(b"", FILE) == load(b"\xef\xbb\xbf# nothing\n", FILE)


MISTAKES = """\
max_children = 5
[server]
handler = "x"
groups = [
  "a",
  3,
]
environment = { PATH = "/bin", LISTEN_FDS = "3" }
usr = "joe"
[[listener]]
address = "tcp://127.0.0.1:80"
mode = "0666"
[[listener]]
address = "tcp://127.0.0.1:80"
backlog = 0
[[listener]]
adress = "unix:///x"
address = "unix://x"
backlog = "many"
[pool]
min_spare = 17
max_children = 0
[timeouts]
statup = 3
[metrcs]
"""


def test_every_problem_is_named_with_its_key_and_line() -> None:
    """One pass finds all mistakes, in the order of the file; one in a table hides no other, nor a rule between tables."""
    assert [(problem.key, problem.line, problem.message) for problem in problems(MISTAKES)] == [
        ("max_children", 1, "unknown key; did you mean pool.max_children?"),
        ("server.handler", 3, 'must be "module:object", such as "mypackage.chat:serve", not the text "x"'),
        ("server.groups[2]", 6, "must be a name, in quotes, not 3"),
        ("server.environment.LISTEN_FDS", 8, "cannot be set: it is the service manager's word to poold and never reaches a child"),
        ("server.usr", 9, "unknown key; did you mean user?"),
        ("listener[1].mode", 12, "is for unix:// only; this listener is tcp://"),
        ("listener[2].address", 14, "is that of listener[1] already"),
        ("listener[2].backlog", 15, "must be a whole number from 1 to 2147483647, not 0"),
        ("listener[3].adress", 17, "unknown key; did you mean address?"),
        ("listener[3].address", 18, "'unix://x' has no absolute path; write unix:///PATH with three slashes"),
        ("listener[3].backlog", 19, 'must be a whole number from 1 to 2147483647, not the text "many"'),
        ("pool.min_spare", 21, "must be at most max_spare, which is 16 unless written, not 17"),
        ("pool.max_children", 22, "must be a whole number from 1 to 65536, not 0"),
        ("timeouts.statup", 24, "unknown key; did you mean startup?"),
        ("metrcs", 25, "unknown key; did you mean metrics?"),
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("tme = 1", "unknown key"),
        ("[server]\nlisten = 1", "unknown key; did you mean metrics.listen?"),
        ("[servr]", "unknown key; did you mean server?"),
        ("[listeners]", "unknown key; did you mean listener?"),
        ("[timeouts]\nimport_ = 1", "unknown key; did you mean import?"),
        ("[timeouts]\ndran = 1", "unknown key; did you mean drain?"),
        ("[admision]", "unknown key; did you mean admission?"),
    ],
)
def test_unknown_keys_have_a_hint(text: str, found: str) -> None:
    """An unknown key is refused, with the key that was probably meant."""
    assert [found] == [problem.message for problem in problems(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[admission]\nallow = []\npenalties.signal = 90", {"admission.allow": 2, "admission.penalties": 3}),
        ("[admission]", {"admission": 1}),
        ("limits = 3", {"limits": 1}),
        ("[limits]\nmemory = '64MiB'", {"limits.memory": 2}),
        (
            "[timeouts]\nidle = 0\nsession = 0\nhandshake = 1",
            {f"timeouts.{key}": 0 for key in ("idle", "session", "handshake")},
        ),
        (
            "[[listener]]\n[[listener]]\naddress = 'systemd://x'\ntls = {}\nproxy_protocol = {}",
            {"listener[2].tls": 4, "listener[2].proxy_protocol": 5},
        ),
        ("[server]\ncommand_style = 'systemd'", {"server.command_style": 2}),
    ],
)
def test_what_does_not_work_yet_is_refused_as_such(text: str, found: dict[str, int]) -> None:
    """A key that poold is meant to have and does not have yet is neither taken nor called unknown."""
    reported = problems(text)
    assert set(found) == {problem.key for problem in reported}
    assert all(problem.message.endswith("not supported yet by this version") for problem in reported)
    assert all(problem.line in (found[problem.key], *([] if found[problem.key] else [2, 3, 4, 5])) for problem in reported)


def test_what_does_not_work_yet_is_no_key_of_the_schema() -> None:
    """A key leaves the list of what does not work yet when it enters the schema."""
    for (table, *keys), value in NOT_YET.items():
        assert (value is not None) == (table in SCHEMA and (not keys or keys[0] in SCHEMA[table]))


def test_relative_paths_count_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are absolute once the file is read; a program's name without a slash is left for the PATH."""
    text = b'[server]\npath = [".", "lib", "/abs"]\nworking_directory = "w"\ncommand = ["bin/x", "a/b"]\n[control]\nsocket = "c.sock"'
    config = load(text, FILE)
    assert config.server.path == ("/etc", "/etc/lib", "/abs")
    assert (config.server.working_directory, config.server.command) == ("/etc/w", ("/etc/bin/x", "a/b"))
    assert config.control.socket == "/etc/c.sock"
    assert load(b'[server]\ncommand = ["cat"]', FILE).server.command == ("cat",)
    monkeypatch.chdir(tmp_path)
    assert load(b"", None).server.path == load(b"", Path("x.toml")).server.path == (str(tmp_path),)


def test_the_working_directory_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file and without a working directory, relative paths count from the root."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert load(b"", None).server.path == ("/",)


JARGON = re.compile(r"pydantic|https?://|[Ii]nput|[Vv]alid |validat|dict|tuple|\bint\b|\bbool\b|None|object at")
ODD = st.text("xyz019.:/[]\"'\\\n\0é\U0001f600", max_size=6)
NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.integers(0, 70000))
VALUES = st.recursive(
    st.one_of(NUMBERS, ODD, st.dates(), st.times(), st.datetimes()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(ODD, inner, max_size=3)),
    max_leaves=4,
)
PLAUSIBLE = st.sampled_from(
    [
        0,
        1,
        17,
        300,
        "30s",
        "0660",
        True,
        "a:b",
        ["a"],
        "wait",
        "json",
        "tcp://127.0.0.1:80",
        "tcp://127.0.0.1:9777",
        "unix:///x",
        "systemd://x",
        "x",
    ]
)


def tables(keys: list[str]) -> st.SearchStrategy[Any]:
    """Return tables of known and unknown keys, and things that are no tables."""
    table = st.dictionaries(st.one_of(st.sampled_from(keys), st.sampled_from(keys), ODD), st.one_of(VALUES, PLAUSIBLE), max_size=5)
    return st.one_of(table, table, table, table, VALUES)


DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        **{name: tables(list(keys)) for name, keys in SCHEMA.items() if name != "listener"},
        "listener": st.one_of(st.lists(tables([*SCHEMA["listener"], "tls"]), max_size=4), VALUES),
        "limits": VALUES,
        "x": VALUES,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DOCUMENTS)
def test_any_document_is_settings_or_problems_for_an_operator(document: dict[str, Any]) -> None:
    """Whatever TOML holds, it is taken, or each key that is wrong is named once, with its line and without jargon."""
    found = judged(tomli_w.dumps(document).encode())
    if isinstance(found, Config):
        assert found == load(effective(found).encode(), Path("/elsewhere/x.toml"))
        return
    assert found
    assert len(found) == len({problem.key for problem in found})
    assert sorted(problem.line or 0 for problem in found) == [problem.line for problem in found]
    assert not [problem for problem in found if not problem.line or JARGON.search(problem.message)]


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text("[]{}='\"\\n.,#\n\r listenerpool019-:T", max_size=60).map(str.encode)))
def test_any_bytes_are_settings_or_problems(data: bytes) -> None:
    """No bytes at all can make the reader fail in a way of its own."""
    assert judged(data)


SECONDS = st.one_of(st.integers(1, 32767), st.floats(0.001, 32767), st.integers(1, 500).map("{}ms".format))
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
LABELS = st.text('abc {}"\\é', min_size=1, max_size=8)
LISTENERS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "tcp": {
        "backlog": st.integers(1, 2**31 - 1),
        "keepalive": SECONDS,
        "user_timeout": SECONDS,
        "nodelay": st.booleans(),
        "interface": st.just("lo"),
    },
    "unix": {"mode": st.sampled_from(["0600", "7", "0777"]), "owner": NAMES, "group": NAMES},
    "systemd": {"keepalive": SECONDS, "nodelay": st.booleans()},
}
ADDRESSES = {"tcp": "tcp://[::1]:{}", "unix": "unix:///run/{}", "systemd": "systemd://{}"}


@st.composite
def listeners(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Return listeners of all kinds, each with keys that fit."""
    found = []
    for number in range(draw(st.integers(0, 4))):
        scheme = draw(st.sampled_from(sorted(LISTENERS)))
        listener = draw(st.fixed_dictionaries({"address": st.just(ADDRESSES[scheme].format(number))}, optional=LISTENERS[scheme]))
        found.append({**listener, **({"name": f"{draw(LABELS)}{number}"} if draw(st.booleans()) else {})})
    return found


SERVER: dict[str, st.SearchStrategy[Any]] = {
    "options": st.dictionaries(NAMES, st.recursive(st.one_of(NAMES, st.integers(-(2**63), 2**63 - 1)), st.lists, max_leaves=3), max_size=3),
    "environment": st.dictionaries(NAMES.filter(lambda name: "=" not in name and not name.startswith(("LISTEN_", "WATCHDOG_"))), NAMES),
    "path": st.lists(NAMES, max_size=3),
    "user": NAMES,
    "groups": st.lists(NAMES, max_size=3),
    "umask": st.sampled_from(["0", "0022", "777"]),
    "working_directory": NAMES,
}
RIGHT = st.fixed_dictionaries(
    {"listener": listeners()},
    optional={
        "server": st.one_of(
            st.fixed_dictionaries({}, optional={**SERVER, "handler": st.just("a.b:c")}),
            st.fixed_dictionaries({"command": st.lists(NAMES, min_size=1, max_size=3)}, optional=SERVER),
        ),
        "pool": st.fixed_dictionaries(
            {"max_spare": st.integers(9, 65536)}, optional={"min_spare": st.integers(0, 9), "refuse_message": NAMES}
        ),
        "timeouts": st.dictionaries(st.sampled_from(["startup", "import", "drain", "kill"]), SECONDS),
        "metrics": st.fixed_dictionaries({}, optional={"listen": st.sampled_from(["", "tcp://h:1"])}),
        "control": st.fixed_dictionaries({}, optional={"socket": NAMES}),
        "log": st.fixed_dictionaries({}, optional={"level": st.sampled_from(["debug", "error"]), "format": st.just("json")}),
    },
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RIGHT)
def test_effective_settings_can_be_read_again(document: dict[str, Any]) -> None:
    """What `poold check --print` shows is TOML that means the same settings, wherever it is put."""
    config = load(tomli_w.dumps(document).encode(), FILE)
    assert config == load(effective(config).encode(), Path("/elsewhere/x.toml"))


def test_effective_settings_show_every_key() -> None:
    """All that has a value is shown, written as an operator would."""
    shown = tomllib.loads(effective(load(b"[metrics]\nlisten = ''\n[timeouts]\nkill = '1500ms'", FILE)))
    assert shown["timeouts"] == {"startup": 10, "import": 60, "drain": 30, "kill": 1.5}
    assert shown["metrics"] == {"listen": ""}
    assert {key for key, value in SCHEMA["server"].items() if value is not None} == set(shown["server"])
    assert (shown["server"]["umask"], shown["server"]["path"]) == ("0077", ["/etc"])
    assert {"handler"} == set(tomllib.loads(effective(load(b"", FILE)))["server"]) - set(
        tomllib.loads(effective(load(b"[server]\ncommand = ['x']", FILE)))["server"]
    )


UNCOMMENTED = re.sub(r"^#(\[|\w+ = )", r"\1", REFERENCE, flags=re.MULTILINE)


@pytest.mark.parametrize("text", [REFERENCE, UNCOMMENTED])
def test_the_reference_is_the_defaults(text: str) -> None:
    """poold.toml means the defaults, as it is and with every default uncommented."""
    assert load(b"", FILE) == load(text.encode(), FILE)


def examples() -> list[str]:
    """Return the examples of the reference, each with the header it belongs to."""
    found: list[str] = []
    header, previous = "", ""
    for line in REFERENCE.splitlines():
        if re.match(r"#?\[", line):
            header = line.lstrip("#")
        elif re.match(r"# (\[|\w+ = )", line):
            if previous in found[-1:]:
                found[-1] += f"\n{line[2:]}"
            else:
                found.append(line[2:] if line.startswith("# [") else f"{header}\n{line[2:]}")
            previous = found[-1]
            continue
        previous = ""
    return found


@pytest.mark.parametrize("example", examples())
def test_the_examples_of_the_reference_are_right(example: str) -> None:
    """Each example in poold.toml is accepted when it is uncommented."""
    load(example.encode(), FILE)


def words_of(table: str, setting: Setting) -> str:
    """Return what the reference has to say beside a key: what `poold check` says must be there."""
    words = reader_of(setting, table).words
    not_yet = NOT_YET.get((table, setting.key))
    return words.replace(f' or "{not_yet}"', "") if not_yet else words


def written() -> dict[tuple[str, str], list[tuple[str, str, str]]]:
    """Return how the reference writes each key of a table: what the line begins with, the value, and the comment beside it."""
    found: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    table = ""
    for line in REFERENCE.splitlines():
        if header := re.fullmatch(r"(#? ?)\[+([a-z.]+)\]+", line):
            table = header[2]
            name, _, key = table.partition(".")
            if key:
                found.setdefault((name, key), []).append((header[1], "{}", ""))
        elif (key := re.fullmatch(r"(#? ?)([a-z_]+) = (.*?)(?:  # (.*))?", line)) and table in SCHEMA:
            found.setdefault((table, key[2]), []).append((key[1], key[3], key[4] or ""))
    return found


@pytest.mark.parametrize(("table", "setting"), [(table, each) for table, settings in TABLES.items() for each in settings])
def test_the_reference_follows_from_the_declarations(table: str, setting: Setting) -> None:
    """poold.toml has each declared key, its default or an example where there is none, and beside each what its value must be."""
    lines = written()[table, setting.key]
    for _, value, comment in lines:
        assert comment == (words_of(table, setting) if value != "{}" else "")
    defaults = [value for mark, value, _ in lines if mark in ("", "#")]
    # The mode of a socket is shown where there is a socket file.
    exemplary = setting.default is None or (table, setting.key) == ("listener", "mode")
    assert len(defaults) == (0 if exemplary else 1)
    for value in defaults or [lines[0][1]]:
        found = reader_of(setting, table).read(tomllib.loads(f"value = {value}")["value"])
        assert exemplary or found == setting.default


def test_the_reference_has_no_other_key() -> None:
    """poold.toml shows no key that is not declared."""
    assert set(written()) == {(table, each.key) for table, settings in TABLES.items() for each in settings}


def test_the_reference_shows_nothing_that_does_not_work() -> None:
    """poold.toml does not name what would be refused."""
    for *_, name in NOT_YET:
        assert NOT_YET.get(("server", name)) or not re.search(rf"^#? ?\[*{name}\b", REFERENCE, re.MULTILINE)

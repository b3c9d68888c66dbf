"""Between TOML text and `Config`: parse, refuse what this version lacks, validate, write.

This module owns the messages for keys that should not be there. No function here opens a file or
looks up an account.

`validate` takes a wrong key out of the tree and judges the rest as if the key were missing, so one
mistake hides no other.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from poold.address import Address
from poold.errors import Problem
from poold.settings.annotations import Schemes, Setting, Unit, settings_of
from poold.settings.config import Config
from poold.settings.fields import seen
from poold.settings.lines import KEY_PARTS_MAX, Finding, KeyPath, dotted, endless_key
from poold.settings.schema import judged

# What a later version will have: a table, a key, or one value of a key.
NOT_YET: Mapping[tuple[str, ...], str | None] = {
    ("admission",): None,
    ("limits",): None,
    ("listener", "proxy_protocol"): None,
    ("listener", "tls"): None,
    ("server", "command_style"): "systemd",
    ("timeouts", "handshake"): None,
    ("timeouts", "idle"): None,
    ("timeouts", "session"): None,
}
_NOT_YET = "not supported yet by this version"

# The search for a near name is slow, so only the first unknown keys get one.
HINTS_MAX = 100

# In Python 3.11 the errors of tomllib have their place only in the message.
_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)


def parse(data: bytes) -> tuple[str, dict[str, Any]] | Problem:
    """Return the text and the tree of a TOML file's bytes, or the first syntax problem."""
    try:
        source = data.decode("utf-8-sig")
        line = endless_key(source)
        if line is not None:
            return Problem("", f"a key has more than {KEY_PARTS_MAX} parts, joined by dots", line)
        return source, tomllib.loads(source)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Problem("", f"byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8", line)
    except RecursionError:
        return Problem("", "syntax error: brackets are nested too deeply")
    except ValueError as error:  # TOMLDecodeError, or int() that refuses thousands of digits
        return _syntax_problem(str(error), source)


def _syntax_problem(message: str, source: str) -> Problem:
    match = _PLACE.fullmatch(message)
    words, line, column = match.groups() if match else (message, None, None)
    if words == "Cannot overwrite a value":
        words = "this key is written a second time"
    words = words[:1].lower() + words[1:]
    if match is None:
        return Problem("", f"syntax error: {words}")
    if line is None:
        return Problem("", f"syntax error at the end of the file: {words}", source.count("\n") + 1)
    return Problem("", f"syntax error in column {column}: {words}", int(line))


def unnamed(tree: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a finding if the file names neither a handler nor a command.

    The default handler is for a start without a file. A file that lost its end must not start the
    built-in chat in the place of a service.
    """
    server = tree.get("server", {})
    if isinstance(server, dict) and not {"handler", "command"} & server.keys():
        words = 'must be written, or command in its place: what is to be served, such as handler = "mypackage.chat:serve" under [server]'
        yield ("server", "handler"), words


def validate(tree: dict[str, Any]) -> tuple[Config | None, list[Finding]]:
    """Return the settings without the wrong keys, and the findings about those.

    None stands for settings of which nothing useful is left. The function takes keys out of `tree`.
    """
    found = dict(_take_unsupported(tree))
    while True:
        try:
            return judged(tree), list(found.items())
        except ValidationError as error:
            faults = list(_faults(error))
        known = set(found)
        progress = False
        for path, message, siblings in faults:
            related = [(*path[:-1], sibling) for sibling in siblings]
            # A rule between two keys has no meaning once one of them is out of the tree.
            if known.isdisjoint(related):
                found.setdefault(path, message)
            for place in (path, *related):
                progress |= _set_aside(tree, place)
        if not progress:
            return None, list(found.items())


def _take_unsupported(tree: dict[str, Any]) -> Iterator[Finding]:
    """Take what is `NOT_YET` out of the tree, and yield a finding for each."""
    for (name, *keys), value in NOT_YET.items():
        if keys:
            for place, table in _tables(tree, name):
                yield from _take_key(table, keys[0], place=place, value=value)
        elif name in tree:
            table = tree.pop(name)
            keys_written = list(table) if isinstance(table, dict) else []
            yield from (((name, key), _NOT_YET) for key in keys_written)
            if not keys_written:
                yield (name,), _NOT_YET


def _tables(tree: Mapping[str, Any], name: str) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Yield path and content of the table of this name, or of each table in the array."""
    found = tree.get(name)
    if isinstance(found, list):
        yield from (((name, index), table) for index, table in enumerate(found) if isinstance(table, dict))
    elif isinstance(found, dict):
        yield (name,), found


def _take_key(table: dict[str, Any], key: str, *, place: KeyPath, value: str | None) -> Iterator[Finding]:
    if key in table and value in (None, table[key]):
        del table[key]
        yield (*place, key), _NOT_YET if value is None else f'"{value}" is {_NOT_YET}'


def _set_aside(tree: dict[str, Any], path: KeyPath) -> bool:
    """Take a path, or the nearest table, out of the tree. Tell whether the tree changed."""
    name, *inner = path
    table = tree.get(str(name))
    if inner and isinstance(inner[0], int) and isinstance(table, list):
        return _set_listener_aside(table, inner[0], keys=inner[1:])
    if inner and isinstance(table, dict):
        if path[:2] == ("server", "environment") and len(path) > 2:
            return table["environment"].pop(path[2], None) is not None
        return table.pop(inner[0], None) is not None
    return tree.pop(str(name), None) is not None


def _set_listener_aside(listeners: list[Any], index: int, *, keys: list[str | int]) -> bool:
    """Take out a key of a listener. Tell whether the tree changed.

    The rules for a listener need its address, so a harmless listener replaces one with a wrong
    address.
    """
    stand_in = {"address": f"systemd://set-aside-{index}"}
    listener = listeners[index]
    if isinstance(listener, dict) and keys and keys[0] != "address" and keys[0] in listener:
        del listener[keys[0]]
        return True
    listeners[index] = stand_in
    return bool(listener != stand_in)


def _faults(error: ValidationError) -> Iterator[tuple[KeyPath, str, tuple[str, ...]]]:
    """Yield path, message and related keys of each fault, in words for the operator."""
    for number, detail in enumerate(error.errors(include_url=False)):
        path, context = detail["loc"], detail.get("ctx", {})
        match detail["type"]:
            case "fault":
                yield path, context["text"], tuple(context["siblings"])
            case "value_error":
                yield path, str(context["error"]), ()
            case "extra_forbidden":
                yield path, _unknown(path) if number < HINTS_MAX else "unknown key", ()
            case _:  # pydantic found no table where a table belongs
                written = "" if isinstance(path[-1], int) else f", written [{dotted(path)}]"
                yield path, f"must be a table{written}, not {seen(detail['input'])}", ()


def _unknown(path: KeyPath) -> str:
    """Return the message for an unknown key, with a similar key or the right table."""
    # No other path of the code needs this import.
    from difflib import get_close_matches

    *around, key = path
    tables = _keys()
    near = get_close_matches(str(key), tables[str(around[0])] if around else tables, n=1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    home = next((f"{table}.{key}" for table, keys in tables.items() if key in keys), None)
    return f"unknown key; did you mean {home}?" if home else "unknown key"


def _keys() -> dict[str, list[str]]:
    """Return the keys of each table, with those that are `NOT_YET`."""
    tables: dict[str, list[str]] = {}
    for each in settings_of(Config):
        assert each.table is not None
        tables[each.key] = [setting.key for setting in settings_of(each.table)]
    for name, *keys in NOT_YET:
        tables.setdefault(name, []).extend(keys)
    return tables


def effective(config: Config) -> str:
    """Return settings as TOML text with every key. `judge.load` reads an equal Config."""
    # Only `poold check --print` needs this import.
    import tomli_w

    text = tomli_w.dumps(_table(config))
    # tomli_w escapes the ASCII part of what a terminal obeys; this escapes the rest.
    return "".join(c if c.isprintable() or c == "\n" else f"\\U{ord(c):08x}" for c in text)


def _table(table: Any) -> dict[str, Any]:
    """Return a table for TOML, without keys that have no value or no meaning for the address."""
    written: dict[str, Any] = {}
    for setting in settings_of(type(table)):
        value, fitting = getattr(table, setting.name), setting.annotation(Schemes)
        if value is None and setting.default is not None:
            # An empty text stands for None where a default would take the place of a missing key.
            value = "" if setting.kind is Address else None
        if value is not None and (fitting is None or table.address.scheme in fitting):
            written[setting.key] = _written(value, setting)
    return written


def _written(value: Any, setting: Setting) -> Any:
    if setting.table is not None:
        return [_table(each) for each in value] if setting.is_array else _table(value)
    if setting.annotation(Unit) is Unit.OCTAL:
        return f"{value:04o}"
    if isinstance(value, StrEnum | Address):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return list(value) if isinstance(value, tuple) else value

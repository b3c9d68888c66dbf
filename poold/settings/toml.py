"""Between TOML text and `Config`: parse, refuse what is not done yet, validate, and write settings out again.

Owns the words for keys that should not be there. It must never touch the machine: no file, no folder, no account.

A key that is wrong is set aside and the rest is judged as if it were not there, so that one mistake hides no other.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ValidationError

from poold.address import Address
from poold.errors import Problem
from poold.settings.fields import seen
from poold.settings.lines import KEY_PARTS_MAX, Finding, KeyPath, dotted, endless_key
from poold.settings.schema import APPLIES, Config, Listener

# What poold.toml is meant to have and this version does not do yet: a table, a key, or only one value of a key.
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

# Looking for a near name takes its time: a file with more wrong keys is no settings file.
HINTS_MAX = 100

# tomllib says where in words; its attributes for that are younger than Python 3.11.
_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)


def parse(data: bytes) -> tuple[str, dict[str, Any]] | Problem:
    """Return the text and the tree of a TOML file's bytes, or the one problem that keeps it from being read."""
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
    except ValueError as error:  # TOMLDecodeError, and what int() says to thousands of digits
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
    """Yield that nothing is named to be served: the defaults are for no file, and one that was cut off must not bring them back."""
    server = tree.get("server", {})
    if isinstance(server, dict) and not {"handler", "command"} & server.keys():
        words = 'must be written, or command in its place: what is to be served, such as handler = "mypackage.chat:serve" under [server]'
        yield ("server", "handler"), words


def validate(tree: dict[str, Any]) -> tuple[Config | None, list[Finding]]:
    """Return the settings less what is wrong, and what that is; no settings if nothing useful is left.

    Uses up the tree: what is set aside is taken out of it.
    """
    found = dict(_take_unsupported(tree))
    while True:
        try:
            return Config.model_validate(tree), list(found.items())
        except ValidationError as error:
            faults = list(_faults(error))
        known = set(found)
        progress = False
        for path, message, siblings in faults:
            related = [(*path[:-1], sibling) for sibling in siblings]
            # A rule between two keys means nothing once one of them was set aside.
            if known.isdisjoint(related):
                found.setdefault(path, message)
            for place in (path, *related):
                progress |= _set_aside(tree, place)
        if not progress:
            return None, list(found.items())


def _take_unsupported(tree: dict[str, Any]) -> Iterator[Finding]:
    """Take out of the tree what is `NOT_YET`, and yield it."""
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
    """Yield the table of this name, or each table of the array of this name, with its path."""
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
    """Take what is at a path out of the tree, or the smallest part around it that can go; say whether anything went."""
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
    """Take out a key of a listener; without its address nothing of it can be judged, so a harmless one takes its place."""
    stand_in = {"address": f"systemd://set-aside-{index}"}
    listener = listeners[index]
    if isinstance(listener, dict) and keys and keys[0] != "address" and keys[0] in listener:
        del listener[keys[0]]
        return True
    listeners[index] = stand_in
    return bool(listener != stand_in)


def _faults(error: ValidationError) -> Iterator[tuple[KeyPath, str, tuple[str, ...]]]:
    """Yield path, message and related keys of each fault, all in the operator's language."""
    for number, detail in enumerate(error.errors(include_url=False)):
        path, context = detail["loc"], detail.get("ctx", {})
        match detail["type"]:
            case "fault":
                yield path, context["text"], tuple(context["siblings"])
            case "value_error":
                yield path, str(context["error"]), ()
            case "extra_forbidden":
                yield path, _unknown(path) if number < HINTS_MAX else "unknown key", ()
            case _:  # what is left is a table of the schema that is none
                written = "" if isinstance(path[-1], int) else f", written [{dotted(path)}]"
                yield path, f"must be a table{written}, not {seen(detail['input'])}", ()


def _unknown(path: KeyPath) -> str:
    """Return what to say of an unknown key: perhaps another was meant, perhaps it stands in the wrong table."""
    # Only who has made a mistake pays for this import.
    from difflib import get_close_matches

    *around, key = path
    tables = _schema()
    near = get_close_matches(str(key), tables[str(around[0])] if around else tables, n=1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    home = next((f"{table}.{key}" for table, keys in tables.items() if key in keys), None)
    return f"unknown key; did you mean {home}?" if home else "unknown key"


def _schema() -> dict[str, list[str]]:
    """Return the keys of each table, those that are `NOT_YET` too."""
    tables: dict[str, list[str]] = {}
    defaults = Config()
    for name, field in Config.model_fields.items():
        model = Listener if name == "listeners" else type(getattr(defaults, name))
        tables[field.alias or name] = [inner.alias or key for key, inner in model.model_fields.items()]
    for name, *keys in NOT_YET:
        tables.setdefault(name, []).extend(keys)
    return tables


def effective(config: Config) -> str:
    """Return settings as TOML text, every key written out; `poold.settings.load` reads an equal Config from it."""
    # Only `poold check --print` needs it.
    import tomli_w

    document: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        document[field.alias or name] = [_listener_table(listener) for listener in value] if name == "listeners" else _table(value)
    document["metrics"].setdefault("listen", "")
    text = tomli_w.dumps(document)
    # Of what a terminal would obey, tomli_w escapes the ASCII part.
    return "".join(c if c.isprintable() or c == "\n" else f"\\U{ord(c):08x}" for c in text)


def _table(model: BaseModel) -> dict[str, Any]:
    fields = type(model).model_fields.items()
    values = {field.alias or name: _plain(name, getattr(model, name)) for name, field in fields}
    return {key: value for key, value in values.items() if value is not None}


def _listener_table(listener: Listener) -> dict[str, Any]:
    """Return a listener's table, without the keys that its scheme does not know and that would be refused."""
    scheme = listener.address.scheme
    return {key: value for key, value in _table(listener).items() if scheme in APPLIES.get(key, (scheme,))}


def _plain(name: str, value: object) -> object:
    if name in ("mode", "umask"):
        return f"{value:04o}"
    if isinstance(value, StrEnum | Address):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return list(value) if isinstance(value, tuple) else value

"""What one setting has to do with another: defaults that follow from a key, and rules between keys.

A rule gets a table whose values are right one by one, and the paths of the keys that the file
holds.
"""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from poold.address import Address
from poold.settings.annotations import Schemes, settings_of
from poold.settings.config import Config, Listener, Pool, Server
from poold.settings.fields import Fault

# The paths of keys in a table that the file holds, such as ("metrics", "listen").
Written = AbstractSet[tuple[str, ...]]


def completed(table: type, tree: object) -> object:
    """Return a table of the file with the defaults that follow from its other keys."""
    if not isinstance(tree, dict):
        return tree
    if table is Server and tree.get("command") is not None and "handler" not in tree:
        return {**tree, "handler": None}
    if table is Listener and "name" not in tree and isinstance(tree.get("address"), str):
        return {**tree, "name": tree["address"]}
    return tree


def broken(table: Any, written: Written) -> Iterator[Fault]:
    """Yield the rules that a table breaks."""
    rule = _RULES.get(type(table))
    if rule is not None:
        yield from rule(table, written)


def _server(server: Server, written: Written) -> Iterator[Fault]:
    if server.handler is not None and server.command is not None:
        yield Fault(("command",), "cannot be written beside handler: keep one of the two", ("handler",))
    if server.handler is None and server.command is None:
        yield Fault(("handler",), "must be written, or command in its place")


def _listener(listener: Listener, written: Written) -> Iterator[Fault]:
    scheme = listener.address.scheme
    for setting in settings_of(Listener):
        fitting = setting.annotation(Schemes)
        if fitting is not None and (setting.name,) in written and scheme not in fitting:
            only = " and ".join(f"{each}://" for each in fitting)
            yield Fault((setting.key,), f"is for {only} only; this listener is {scheme}://")


def _pool(pool: Pool, written: Written) -> Iterator[Fault]:
    if pool.max_spare >= pool.min_spare:
        return
    if ("max_spare",) in written:
        yield Fault(("max_spare",), f"must be at least min_spare, which is {pool.min_spare}, not {pool.max_spare}", ("min_spare",))
    else:
        yield Fault(("min_spare",), f"must be at most max_spare, which is {pool.max_spare} unless written, not {pool.min_spare}")


def _config(config: Config, written: Written) -> Iterator[Fault]:
    addresses: dict[Address, int] = {}
    names: dict[str, int] = {}
    for index, listener in enumerate(config.listeners):
        if listener.address in addresses:
            yield Fault(("listener", index, "address"), f"is that of listener[{addresses[listener.address]}] already")
        elif listener.name in names:
            yield Fault(("listener", index, "name"), f"is that of listener[{names[listener.name]}] already")
        addresses.setdefault(listener.address, index + 1)
        names.setdefault(listener.name, index + 1)
    metrics = config.metrics.listen
    if metrics is not None and metrics.port and metrics in addresses:
        position = addresses[metrics]
        if ("metrics", "listen") in written:
            yield Fault(("metrics", "listen"), f"is that of listener[{position}] already")
        else:
            yield Fault(("listener", position - 1, "address"), "is that of metrics.listen, unless that is written too")


_RULES: Mapping[type, Callable[[Any, Written], Iterator[Fault]]] = {
    Server: _server,
    Listener: _listener,
    Pool: _pool,
    Config: _config,
}

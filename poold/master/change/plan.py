"""What a reload would change. Nothing here acts on a listener or a process."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from poold.address import Address, Scheme
from poold.errors import Problem
from poold.settings.config import Config, Listener, keys

# The keys that belong to the bound socket and cannot be changed while the socket is open.
BOUND = ("interface", "freebind")


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps from one `Config` to another. A listener is identified by its address."""

    new: Config
    opened: tuple[Listener, ...]
    closed: tuple[Listener, ...]
    kept: tuple[tuple[Listener, Listener], ...]
    metrics_moved: bool
    changes: tuple[str, ...]
    problems: tuple[Problem, ...] = field(default=())

    def describe(self, *, sessions: int) -> dict[str, Any]:
        """Return what an operator wants to know before or after the reload."""
        cap = self.new.pool.max_children
        return {
            "changes": list(self.changes),
            "opened": [str(listener.address) for listener in self.opened],
            "closed": [str(listener.address) for listener in self.closed],
            "kept": [str(listener.address) for _, listener in self.kept],
            "sessions_over_cap": max(0, sessions - cap),
        }


def plan(old: Config, new: Config, *, lost: frozenset[Address] = frozenset()) -> Plan:
    """Compare two settings.

    A listener with an address in `lost` is open but cannot be reached. The plan opens that listener
    anew.
    """
    before = {listener.address: listener for listener in old.listeners if listener.address not in lost}
    after = {listener.address: listener for listener in new.listeners}
    kept = tuple((before[address], listener) for address, listener in after.items() if address in before)
    return Plan(
        new=new,
        opened=tuple(listener for address, listener in after.items() if address not in before),
        closed=tuple(listener for listener in old.listeners if listener.address not in after or listener.address in lost),
        kept=kept,
        metrics_moved=old.metrics.listen != new.metrics.listen,
        changes=(*_changes(old, new), *(text for pair in kept for text in _listener_changes(*pair))),
        problems=tuple(_impossible(old, new, kept)),
    )


def _changes(old: Config, new: Config) -> Iterator[str]:
    """Yield each key with a changed value, as `table.key: old → new`."""
    for table in keys(new):
        if table == "listeners":
            continue
        was, now = getattr(old, table), getattr(new, table)
        for name, written in keys(now).items():
            if getattr(was, name) != getattr(now, name):
                key = f"{table}.{written}"
                # Options and variables may hold secrets of the handler.
                secret = table == "server" and name in ("options", "environment")
                yield key if secret else f"{key}: {shown(getattr(was, name))} → {shown(getattr(now, name))}"


def _listener_changes(before: Listener, after: Listener) -> Iterator[str]:
    for name in keys(after):
        was, now = getattr(before, name), getattr(after, name)
        if was != now:
            yield f"listener {after.address} {name}: {shown(was)} → {shown(now)}"


def shown(value: object) -> str:
    """Return a value as an operator would write this value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _impossible(old: Config, new: Config, kept: tuple[tuple[Listener, Listener], ...]) -> Iterator[Problem]:
    """Yield the changes that a reload cannot make. They need a restart or an upgrade."""
    if old.control.socket != new.control.socket:
        yield Problem("control.socket", "cannot be changed by a reload; it needs a restart")
    for was, now in kept:
        for name in BOUND:
            if getattr(was, name) != getattr(now, name):
                message = "cannot be changed on an open listener; remove the listener with one reload and add it with the next"
                yield Problem(f"listener {now.address} {name}", message)
        if now.address.scheme is Scheme.UNIX and (was.owner, was.group) != (now.owner, now.group) and None in (now.owner, now.group):
            yield Problem(f"listener {now.address} owner", "cannot be taken back on an open listener; name both owner and group")

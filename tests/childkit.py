"""Which processes a daemon's children are, told by their titles."""

from collections.abc import Iterable

from tests.procfs import children_of, shown, shows
from tests.support import Daemon
from tests.waiting import eventually


def titled(daemon: Daemon, *kinds: str, but: Iterable[int] = ()) -> list[int]:
    """Return the pids of the master's living children whose title begins so: "mold", "exporter", "spare", "cases"; without `but`."""
    return [pid for pid in children_of(daemon.master) if pid not in but and shows(pid, *(f"poold: {kind}" for kind in kinds))]


def mold_of(daemon: Daemon) -> int:
    """Return the mold's pid."""
    return eventually(lambda: titled(daemon, "mold"), "a mold")[0]


def exporter_of(daemon: Daemon) -> int:
    """Return the exporter's pid."""
    return eventually(lambda: titled(daemon, "exporter"), "an exporter")[0]


def spares_of(daemon: Daemon, count: int, *, but: Iterable[int] = ()) -> list[int]:
    """Wait until the master has so many spares, and return their pids; `but` are stopped ones that look like spares."""
    daemon.metric("poold_children", count, kind="worker", state="spare")

    def found() -> list[int]:
        pids = titled(daemon, "spare", but=but)
        return pids if len(pids) == count else []

    return eventually(found, f"{count} processes that are spares") if count else []


def handed_over(daemon: Daemon, count: int = 1) -> None:
    """Wait until so many workers have been given a session."""
    daemon.metric("poold_children", count, kind="worker", state="serving")


def trial_of(daemon: Daemon) -> int:
    """Return the pid of the trial that runs; its interpreter may not have said its title yet, but has the word in its command."""
    return eventually(lambda: [pid for pid in children_of(daemon.master) if "trial" in shown(pid)], "a trial")[0]


def guard_of(daemon: Daemon) -> int:
    """Return the pid of an upgrade's guard."""
    return eventually(lambda: titled(daemon, "guard"), "a guard")[0]

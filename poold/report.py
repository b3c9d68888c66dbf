"""Makes what `poold status` and `poold ps` print, from the shared memories of a daemon.

The master answers with descriptors of these memories and with a few words of its own. So the time
to read a table of thousands is the reader's, and not the master's.
"""

import json
import os
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poold import rpc
from poold.childrows import ChildRow, ChildRowsView
from poold.log import escaped, printable
from poold.metrictable import CellUnit, Metric
from poold.scoreboard import CHILDREN, METRICS, SESSIONS_ACTIVE, CountersView
from poold.words import Kind, State

ANSWER_SECONDS = 5.0
PROGRESS_SECONDS = 0.5
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class DaemonView:
    """A daemon's own words in `state`, and its shared memories."""

    state: dict[str, Any]
    counters: CountersView
    rows: ChildRowsView
    # The status text of each session that has one, by session; {} unless asked for.
    statuses: dict[str, str]


def fetch(places: list[Path], *, statuses: bool = False) -> DaemonView:
    """Ask the first daemon that listens in one of these places.

    With `statuses`, the daemon is asked for the status text of each session too.

    Raises rpc.UnreachableError.
    """
    state, fds = rpc.call(places, {"verb": "view", "statuses": statuses}, timeout=ANSWER_SECONDS)
    try:
        said = state.get("statuses", False)
        if not state.get("ok") or len(fds) < 2 + said:
            raise rpc.UnreachableError(str(state.get("error", "the answer lacks its descriptors")))
        return DaemonView(state, CountersView(fds[0]), ChildRowsView(fds[1]), _statuses(fds[2]) if said else {})
    except ValueError as error:
        raise rpc.UnreachableError(str(error)) from error
    finally:
        for fd in fds:
            os.close(fd)


def _statuses(fd: int) -> dict[str, str]:
    found: dict[str, str] = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    return found


def summary(view: DaemonView) -> dict[str, Any]:
    """Return the figures of `poold status`, all as of one moment.

    They are what the master says, and the rows of the table of metrics that have a place in status.
    """
    cells = view.counters.read()
    names = view.counters.names(cells)
    addresses = {listener["name"]: listener["address"] for listener in view.state["listeners"]}
    facts: dict[str, Any] = {
        "version": view.state["version"],
        "pid": view.state["pid"],
        "phase": view.state["phase"],
        "seconds": round(view.state["seconds"], 3),
        "spares": cells[CHILDREN[Kind.WORKER, State.SPARE]],
        "listeners": [{"name": name, "address": addresses.get(name)} for name in names],
        "warnings": list(view.state.get("warnings", ())),
    }
    for metric in METRICS:
        if metric.status:
            _place(facts, metric, [(values, _figure(metric, cells[cell])) for values, cell in metric.series(names)])
    return facts


def _figure(metric: Metric, number: int) -> float:
    return bool(number) if metric.unit is CellUnit.FLAG else metric.figure(number)


def _place(facts: dict[str, Any], metric: Metric, figures: list[tuple[tuple[str, ...], float]]) -> None:
    """Put a metric's figures in their place.

    The figures by listener go into each listener's object. Other labelled figures are an object.
    """
    if metric.labels.values is None:
        for listener, (_, figure) in zip(facts["listeners"], figures, strict=True):
            listener[metric.status] = figure
        return
    *above, key = metric.status.split(".")
    for each in above:
        facts = facts.setdefault(each, {})
    facts[key] = {"/".join(values): figure for values, figure in figures} if metric.labels.names else figures[0][1]


def status(view: DaemonView, *, as_json: bool) -> str:
    """Return what `poold status` prints."""
    facts = summary(view)
    if as_json:
        return _json(facts)
    applied_at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["last_reload"]["applied_at"]))
    lines = [
        ("poold", f"{facts['version']}, pid {facts['pid']}, up {age(facts['seconds'])}"),
        ("phase", f"{facts['phase']}, {'accepting' if facts['accepting'] else 'not accepting'}"),
        ("generation", f"{facts['generation']}, settings of {applied_at}"),
        ("sessions", f"{facts['sessions']['active']} active of at most {facts['children_max']}"),
        ("spares", f"{facts['spares']}"),
    ]
    lines += [(metric.status, _counts(facts[metric.status])) for metric in METRICS if metric.line]
    lines.append(("last reload", "applied" if facts["last_reload"]["successful"] else "refused"))
    lines += [("warning", printable(text)) for text in facts["warnings"]]
    for listener in facts["listeners"]:
        address = listener["address"] or "closed"
        name = "" if listener["name"] == address else f"{printable(listener['name'])}, "
        lines.append(("listener", f"{name}{address}, {listener['accepted']} accepted"))
    return "\n".join(f"{name:<12} {text}" for name, text in lines)


def _json(facts: object) -> str:
    """Return printable JSON.

    DEL is the one character that json.dumps leaves unescaped and a terminal acts on.
    """
    return json.dumps(facts, indent=2).replace("\x7f", "\\u007f")


def _counts(counts: dict[str, int] | int) -> str:
    """Return the total, and the words that have a count."""
    if isinstance(counts, int):
        return f"{counts}"
    total = sum(counts.values())
    parts = ", ".join(f"{word} {count}" for word, count in counts.items() if count)
    return f"{total} ({parts})" if parts else f"{total}"


def children(view: DaemonView, *, as_json: bool) -> str:
    """Return what `poold ps` prints."""
    cells = view.counters.read()
    names = view.counters.names(cells)
    rows = [_child(view, row, names) for row in view.rows.rows()]
    if as_json:
        return _json(rows)
    header = ("PID", "KIND", "STATE", "SESSION", "PEER", "LISTENER", "AGE", "GEN", "CPU", "MEM", "STATUS")
    return _aligned([header, *(_columns(row) for row in rows)])


def _child(view: DaemonView, row: ChildRow, names: list[str]) -> dict[str, Any]:
    cpu, memory = usage(row.pid)
    serving = row.session != 0
    return {
        "pid": row.pid,
        "kind": row.kind,
        "state": row.state,
        "session": row.session or None,
        "peer": row.peer or None,
        "listener": names[row.listener] if row.listener < len(names) else None,
        "seconds": round(time.monotonic() - (row.session_at if serving else row.born_at), 3),
        "generation": row.generation,
        "cpu_seconds": cpu,
        "memory_bytes": memory,
        "status": view.statuses.get(str(row.session), ""),
    }


def usage(pid: int) -> tuple[float | None, int | None]:
    """Return CPU seconds and resident bytes of a process, None for what cannot be read.

    Nothing can be read of a process that has gone. Where /proc hides the process (proc(5),
    hidepid), its CPU clock still tells the CPU time.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return _clock(pid), None
    return (int(fields[11]) + int(fields[12])) / _TICK, int(fields[21]) * _PAGE


def _clock(pid: int) -> float | None:
    """Return the CPU seconds of any process, also of one that /proc hides.

    The clock's number is made as the kernel does (MAKE_PROCESS_CPUCLOCK).

    clock_getcpuclockid(3) makes the same number.
    """
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return None


def _columns(child: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(child["pid"]),
        child["kind"],
        child["state"],
        str(child["session"] or "-"),
        printable(child["peer"] or "-"),
        printable(child["listener"] or "-"),
        age(child["seconds"]),
        str(child["generation"]),
        "-" if child["cpu_seconds"] is None else f"{child['cpu_seconds']:.2f}",
        "-" if child["memory_bytes"] is None else f"{child['memory_bytes'] / (1 << 20):.1f}M",
        printable(child["status"]),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def age(seconds: float) -> str:
    """Return a length of time in the words 12s, 5m03s, 2h05m or 3d04h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def reloaded(answer: dict[str, Any]) -> str:
    """Return what `poold reload` prints of a reload that was applied, or would be."""
    lines = [f"would change ({len(answer['changes'])}):" if answer.get("dry_run") else f"applied, generation {answer['generation']}"]
    lines += [f"  {printable(change)}" for change in answer["changes"]]
    if not answer["changes"] and not answer["opened"] and not answer["closed"]:
        lines.append("  no setting; the handler is imported anew")
    for word in ("opened", "closed", "kept"):
        lines += [f"  listener {address} {WOULD[word] if answer.get('dry_run') else word}" for address in answer[word]]
    if answer["sessions_over_cap"]:
        lines.append(f"  {answer['sessions_over_cap']} sessions over the new cap go on; newcomers wait")
    return "\n".join(lines)


def upgraded(answer: dict[str, Any]) -> str:
    """Return what `poold upgrade` prints of an upgrade that was applied."""
    before, now = printable(answer["from"]), printable(answer["version"])
    versions = f"poold {now}" if before == now else f"poold {before} → {now}"
    return f"applied, generation {answer['generation']}: {versions}, {answer['sessions']} sessions go on"


WOULD = {"opened": "opens", "closed": "closes", "kept": "stays"}


def watch_end(places: list[Path], pid: int) -> None:
    """Wait until a daemon is gone, and show how many sessions are left."""
    try:
        gone = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(gone, select.POLLIN)
    shown, tty = "", sys.stderr.isatty()
    while not poller.poll(PROGRESS_SECONDS * 1000):
        try:
            line = escaped(progress(fetch(places)))
        except rpc.UnreachableError:
            # The daemon has closed the control socket, which is one of its last acts.
            continue
        if line != shown:
            shown = line
            print(f"\r\x1b[K{line}" if tty else line, end="" if tty else "\n", file=sys.stderr, flush=True)
    if shown and tty:
        print(file=sys.stderr)
    os.close(gone)


def progress(view: DaemonView) -> str:
    """Return how far a stop is, in one line."""
    cells = view.counters.read()
    left = view.state.get("drain_seconds_left")
    waiting = "" if left is None else f", at most {left:.0f} s more"
    return f"{view.state['phase']}: {cells[SESSIONS_ACTIVE]} sessions left{waiting}"

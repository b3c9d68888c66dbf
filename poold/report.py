"""What `poold status` and `poold ps` print, made from a daemon's shared memories: the master only hands over descriptors."""

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
from poold import scoreboard as board
from poold.log import escaped, printable
from poold.scoreboard import CountersView, Row, TableView
from poold.words import Kind, State

ANSWER_SECONDS = 5.0
PROGRESS_SECONDS = 0.5
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class View:
    """A daemon's own words, and its shared memories."""

    state: dict[str, Any]
    counters: CountersView
    table: TableView
    # What sessions say, by session; {} unless asked for.
    statuses: dict[str, str]


def fetch(places: list[Path], *, statuses: bool = False) -> View:
    """Ask the first daemon that listens in one of these places, also for what each session says. Raises rpc.UnreachableError."""
    state, fds = rpc.call(places, {"verb": "view", "statuses": statuses}, timeout=ANSWER_SECONDS)
    try:
        said = state.get("statuses", False)
        if not state.get("ok") or len(fds) < 2 + said:
            raise rpc.UnreachableError(str(state.get("error", "the answer lacks its descriptors")))
        return View(state, CountersView(fds[0]), TableView(fds[1]), _statuses(fds[2]) if said else {})
    except ValueError as error:
        raise rpc.UnreachableError(str(error)) from error
    finally:
        for fd in fds:
            os.close(fd)


def _statuses(fd: int) -> dict[str, str]:
    found: dict[str, str] = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    return found


def summary(view: View) -> dict[str, Any]:
    """Return the figures of `poold status`, all of one moment."""
    cells = view.counters.read()
    names = view.counters.names(cells)
    addresses = {listener["name"]: listener["address"] for listener in view.state["listeners"]}
    return {
        "version": view.state["version"],
        "pid": view.state["pid"],
        "phase": view.state["phase"],
        "generation": cells[board.GENERATION],
        "seconds": round(view.state["seconds"], 3),
        "accepting": bool(cells[board.ACCEPTING]),
        "listeners": [
            {"name": name, "address": addresses.get(name), "accepted": cells[board.ACCEPTED[number]]} for number, name in enumerate(names)
        ],
        "sessions": {"active": cells[board.SESSIONS_ACTIVE], "serving": cells[board.CHILDREN_ACTIVE]},
        "children_max": cells[board.CHILDREN_MAX],
        "spares": cells[board.CHILDREN[Kind.WORKER, State.SPARE]],
        "spawned": {kind: cells[cell] for kind, cell in board.SPAWNED.items()},
        "reaped": {kind: cells[cell] for kind, cell in board.REAPED.items()},
        "failed": {reason: cells[cell] for reason, cell in board.FAILED.items()},
        "refused": {reason: cells[cell] for reason, cell in board.REFUSED.items()},
        "ended": {cause: cells[cell] for cause, cell in board.ENDED.items()},
        "reloads": {result: cells[cell] for result, cell in board.RELOADS.items()},
        "warnings": list(view.state.get("warnings", ())),
        "last_reload": {
            "successful": bool(cells[board.RELOAD_SUCCESSFUL]),
            "applied_at": cells[board.RELOAD_SUCCESS_AT] / 1e6,
        },
    }


def status(view: View, *, as_json: bool) -> str:
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
        ("reaped", _counts(facts["reaped"])),
        ("failed", _counts(facts["failed"])),
        ("refused", _counts(facts["refused"])),
        ("ended", _counts(facts["ended"])),
        ("reloads", _counts(facts["reloads"])),
        ("last reload", "applied" if facts["last_reload"]["successful"] else "refused"),
    ]
    lines += [("warning", printable(text)) for text in facts["warnings"]]
    for listener in facts["listeners"]:
        address = listener["address"] or "closed"
        name = "" if listener["name"] == address else f"{printable(listener['name'])}, "
        lines.append(("listener", f"{name}{address}, {listener['accepted']} accepted"))
    return "\n".join(f"{name:<12} {text}" for name, text in lines)


def _json(facts: object) -> str:
    """Return JSON that is printable: of what is not, json.dumps leaves one character as it is."""
    return json.dumps(facts, indent=2).replace("\x7f", "\\u007f")


def _counts(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    parts = ", ".join(f"{word} {count}" for word, count in counts.items() if count)
    return f"{total} ({parts})" if parts else f"{total}"


def children(view: View, *, as_json: bool) -> str:
    """Return what `poold ps` prints."""
    cells = view.counters.read()
    names = view.counters.names(cells)
    rows = [_child(view, row, names) for row in view.table.rows()]
    if as_json:
        return _json(rows)
    header = ("PID", "KIND", "STATE", "SESSION", "PEER", "LISTENER", "AGE", "GEN", "CPU", "MEM", "STATUS")
    return _aligned([header, *(_cells(row) for row in rows)])


def _child(view: View, row: Row, names: list[str]) -> dict[str, Any]:
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
    """Return CPU seconds and resident bytes of a process, None where they cannot be read.

    The process has gone; or /proc hides what one may not look into (proc(5), hidepid), and then its CPU clock still tells its time.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return _clock(pid), None
    return (int(fields[11]) + int(fields[12])) / _TICK, int(fields[21]) * _PAGE


def _clock(pid: int) -> float | None:
    """Return the CPU seconds of any process (clock_getcpuclockid(3), whose numbers are the kernel's: MAKE_PROCESS_CPUCLOCK)."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return None


def _cells(child: dict[str, Any]) -> tuple[str, ...]:
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
    """Return a length of time as people say it: 12s, 5m03s, 2h05m, 3d04h."""
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
    """Wait until a daemon is gone, and show how far it is."""
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
            # Its control socket is closed at the very end.
            continue
        if line != shown:
            shown = line
            print(f"\r\x1b[K{line}" if tty else line, end="" if tty else "\n", file=sys.stderr, flush=True)
    if shown and tty:
        print(file=sys.stderr)
    os.close(gone)


def progress(view: View) -> str:
    """Return how far a stop is, in one line."""
    cells = view.counters.read()
    left = view.state.get("drain_seconds_left")
    waiting = "" if left is None else f", at most {left:.0f} s more"
    return f"{view.state['phase']}: {cells[board.SESSIONS_ACTIVE]} sessions left{waiting}"

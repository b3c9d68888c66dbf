"""The rules of the structure that a machine can hold."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from poold.metrictable import MetricType
from poold.scoreboard import METRICS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "poold"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "handlers" not in path.parts)
TREES = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def name_of(path: Path) -> str:
    """Return a module's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in TREES}


def imports(path: Path, *, typing_too: bool = False) -> Iterator[str]:
    """Yield the modules that a module imports, but for its types alone."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(TREES[path]):
        if node in skipped:
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" and not typing_too:
            skipped.update(inner for statement in node.body for inner in ast.walk(statement))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in NAMES else node.module


def process_of(name: str) -> str:
    """Return the process that a module belongs to; "" for what is shared."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else ""


# Who may import whom, besides what is shared.
ALLOWED = {
    "master": {"master", "settings"},
    "mold": {"mold", "worker"},
    "worker": {"worker"},
    "exporter": {"exporter"},
    "logger": {"logger"},
    "settings": {"settings"},
    "report": {"report"},
    "probe": {"probe", "settings", "master"},
    "cli": {"cli", "report", "probe", "settings", "master"},
    "": {"", "cli"},
}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_processes_do_not_import_each_other(path: Path) -> None:
    """A process's modules import their own and what is shared; the one crossing is where a mold becomes a worker."""
    name = name_of(path)
    for imported in imports(path):
        if imported.startswith("poold"):
            process = process_of(imported)
            assert process == "" or process in ALLOWED[process_of(name)], f"{name} imports {imported}"
            if process_of(name) == "mold" and process == "worker":
                assert name in ("poold.mold.main", "poold.mold.orders", "poold.mold.warmup")
            if process_of(name) == "" and process:
                assert name == "poold.__main__"


def test_imports_have_no_cycle() -> None:
    """The import graph is acyclic, types included."""
    graph = {name_of(path): {imported for imported in imports(path, typing_too=True) if imported in NAMES} - {"poold"} for path in TREES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join((*above, name))
        if name not in done:
            for imported in graph[name]:
                visit(imported, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


# The rooms of the master, from the ground up: a room imports those before it. What stands in no room composes them.
ROOMS = ("engine", "document", "clients", "children", "pool", "outside", "change", "upgrade")


def room_of(name: str) -> str:
    """Return the room of the master that a module stands in, "" for none."""
    parts = name.split(".")
    return parts[2] if parts[:2] == ["poold", "master"] and len(parts) > 3 else ""


def test_rooms_of_the_master_stand_one_upon_the_other() -> None:
    """A folder of the master imports only folders below it, and every folder has its place."""
    assert {folder.name for folder in (PACKAGE / "master").iterdir() if (folder / "__init__.py").exists()} == set(ROOMS)
    for path in TREES:
        room = room_of(name_of(path))
        for imported in imports(path, typing_too=True):
            if room and room_of(imported):
                assert ROOMS.index(room_of(imported)) <= ROOMS.index(room), f"{name_of(path)} imports {imported}"


def calls(path: Path) -> Iterator[str]:
    """Yield every name, dotted or not, that a module calls."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            yield f"{node.func.value.id}.{node.func.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


# The calls that can hurt, and the only modules that make them.
HURTING = {
    r"os\.(fork|forkpty)|.*\.PyOS_\w+": {"poold.mold.clone", "poold.settings.judge_in_fork", "poold.master.drill"},
    r"os\.posix_spawnp?|subprocess\.\w+": {"poold.master.children.spawn"},
    r"os\.exec\w+": {"poold.worker.adapters", "poold.master.upgrade.program"},
    r"os\.(set\w*id|setgroups|initgroups)": {"poold.sandbox", "poold.worker.main"},  # the worker's setsid
    r"signal\.(signal|pthread_sigmask|set_wakeup_fd|sigaction)": {
        "poold.master.engine.signals",
        "poold.mold.main",
        "poold.worker.main",
        "poold.mold.warmup",
        "poold.exporter.main",
    },
    # The guard ends the master; the drill, in a trial, the processes that it has made for it; a start that is called off, who judges.
    r"os\.(kill|killpg)": {
        "poold.master.children.ladder",
        "poold.probe",
        "poold.master.guard",
        "poold.master.drill",
        "poold.settings.judge_in_fork",
    },
    r"os\.(wait\w*)": {
        "poold.master.children.reaper",
        "poold.master.children.tracees",  # stops, which are no exits
        "poold.master.pool.births",
        "poold.master.children.loggers",  # the last child, which ends after the loop
        "poold.probe",
        "poold.master.drill",
        "poold.mold.clone",
        "poold.settings.judge_in_fork",
    },
    r"(\w+\.)?_?ptrace": {"poold.master.children.tracees"},
    # The loop's holding off; an observer that waits for its scout.
    r"time\.sleep": {"poold.master.engine.loop", "poold.mold.scout"},
    r"threading\.\w+": set(),
    r"(pickle|marshal|shelve|yaml)\.\w+": set(),
}


@pytest.mark.parametrize("pattern", HURTING)
def test_calls_that_can_hurt_are_in_named_files(pattern: str) -> None:
    """Forking, starting, executing, changing users, signals and waiting happen where a reader looks for them."""
    found = {name_of(path) for path in MODULES for call in calls(path) if re.fullmatch(pattern, call)}
    assert found <= HURTING[pattern]


# The master's phases and what they call for, which no part can know.
LINES = {"poold.master.main": 249}


@pytest.mark.parametrize("path", sorted(TREES), ids=name_of)
def test_size(path: Path) -> None:
    """No module over 350 lines, no function over 45."""
    assert len(path.read_text().splitlines()) <= LINES.get(name_of(path), 350)
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 46, f"{node.name} in {name_of(path)}"


@pytest.mark.parametrize("path", sorted(TREES), ids=name_of)
def test_no_error_is_swallowed_without_a_reason(path: Path) -> None:
    """An except clause that does nothing with its error says why in a comment."""
    lines = path.read_text().splitlines()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ExceptHandler) and len(node.body) == 1 and isinstance(node.body[0], ast.Pass | ast.Continue):
            text = "\n".join(lines[node.lineno - 1 : node.body[0].end_lineno])
            assert "#" in text, f"{name_of(path)}:{node.lineno}"


def test_nothing_weighs_on_the_mold_at_import() -> None:
    """What the mold imports avoids the modules that cost every worker: see the test of the mold's weight for the whole list."""
    heavy = {"dataclasses", "typing", "threading", "logging", "traceback", "inspect"}
    reached, todo = set(), ["poold.mold.main"]
    by_name = {name_of(path): path for path in TREES}
    while todo:
        name = todo.pop()
        if name in reached or name not in by_name:
            continue
        reached.add(name)
        top = ast.Module(body=TREES[by_name[name]].body, type_ignores=[])
        for node in top.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not heavy & {each.split(".")[0] for each in names}, f"{name} imports {names}"
        todo += list(imports(by_name[name]))


def test_names_in_the_documents_exist() -> None:
    """Every metric that the documents and the alerting rules name is one that the exporter serves."""
    served = {metric.name for metric in METRICS}
    served |= {f"{metric.name}_{end}" for metric in METRICS if metric.type is MetricType.HISTOGRAM for end in ("bucket", "sum", "count")}
    documents = [*ROOT.glob("*.md"), *ROOT.glob("deploy/**/*.md"), *ROOT.glob("deploy/**/*.yml"), PACKAGE / "DESIGN.md"]
    for document in documents:
        for name in re.findall(r"\bpoold_[a-z_]+\b", document.read_text()):
            assert name in served, f"{document.name}: {name}"


def test_every_event_is_documented() -> None:
    """The operator's handbook lists every event that the log can hold, and no other."""
    written = {
        node.args[0].value
        for path in MODULES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("debug", "info", "warning", "error")
        and (
            (isinstance(node.func.value, ast.Name) and node.func.value.id == "log")
            # The logger's, which is not the module's own.
            or (isinstance(node.func.value, ast.Attribute) and node.func.value.attr == "_log")
        )
        and isinstance(node.args[0], ast.Constant)
    }
    table = (ROOT / "deploy" / "README.md").read_text().partition("## Events")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z_]+)`", table, re.MULTILINE)) == written

"""Names that a module uses and nobody defines: what a file lacks that was cut between two functions, and can be imported all the same.

For the trial of an upgrade, where no checksum is written down. Three kinds are found by reading the source: a global name of the module, a
name of another module of poold's, and an attribute that a method reads of its own object. What one object asks of another is not.
"""

import ast
import builtins
import importlib
import symtable
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from types import ModuleType

PACKAGE = "poold"
# Those that every object or module may have without anybody's definition.
GIVEN = {"__file__", "__dict__", "__class__"}


def undefined(name: str) -> Iterator[str]:
    """Yield what a module that can be imported uses and nobody defines; nothing where there is no source."""
    module = importlib.import_module(name)
    if not isinstance(module.__loader__, SourceFileLoader):
        # Compiled, or bytecode only: there is nothing to read.
        return
    source = module.__loader__.get_data(module.__loader__.path).decode()
    tree = ast.parse(source)
    known = vars(module).keys() | vars(builtins).keys() | GIVEN | _leave_out_types(tree)
    yield from sorted(set(_globals(symtable.symtable(source, name, "exec"), known)))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    yield from sorted(set(_of_modules(attributes, module)))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            inner = [each for each in attributes if node.lineno <= each.lineno <= (node.end_lineno or 0)]
            yield from sorted(_of_class(inner, vars(module)[node.name]))


def _leave_out_types(tree: ast.Module) -> set[str]:
    """Take out what is for type checkers alone and names what is not there when the program runs; return the names bound there."""
    bound = set()
    for part in list(tree.body):
        if isinstance(part, ast.If) and isinstance(part.test, ast.Name) and part.test.id == "TYPE_CHECKING":
            tree.body.remove(part)
            bound |= {inner.id for inner in ast.walk(part) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)}
            bound |= {inner.asname or inner.name for inner in ast.walk(part) if isinstance(inner, ast.alias)}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return bound


def _globals(scope: symtable.SymbolTable, known: set[str]) -> Iterator[str]:
    for symbol in scope.get_symbols():
        if symbol.is_referenced() and symbol.is_global() and symbol.get_name() not in known:
            yield symbol.get_name()
    for inner in scope.get_children():
        yield from _globals(inner, known)


def _of_modules(attributes: list[ast.Attribute], module: ModuleType) -> Iterator[str]:
    for node in attributes:
        where = node.value.id if isinstance(node.value, ast.Name) else ""
        other = vars(module).get(where)
        if isinstance(other, ModuleType) and other.__name__.startswith(f"{PACKAGE}.") and not hasattr(other, node.attr):
            yield f"{where}.{node.attr}"


def _of_class(attributes: list[ast.Attribute], kind: type) -> set[str]:
    """Return the attributes of `self` that are read among these and that no object of this class ever has."""
    if any(not base.__module__.startswith(PACKAGE) and base is not object for base in kind.__mro__):
        # What an object of somebody else's class has, only that class knows.
        return set()
    known = set(dir(kind)) | GIVEN
    for base in kind.__mro__:
        known |= vars(base).get("__annotations__", {}).keys()
    own = [node for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "self"]
    known |= {node.attr for node in own if isinstance(node.ctx, ast.Store)}
    return {f"{kind.__name__}.{node.attr}" for node in own if isinstance(node.ctx, ast.Load) and node.attr not in known}

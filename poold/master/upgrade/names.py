"""Finds names that a module uses but nothing defines.

A file that was cut between two functions lacks such names, and can still be imported. The trial of
an upgrade calls this where the installer has recorded no checksums.

Three kinds of names are checked by reading the source. These are the module's own global names,
names of other modules of poold, and attributes that a method reads from its own object. Attributes
of other objects are not checked.
"""

import ast
import builtins
import importlib
import symtable
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from types import ModuleType

PACKAGE = "poold"
# Names that each object or module may have without a definition in the source.
GIVEN = {"__file__", "__dict__", "__class__"}


def undefined(name: str) -> Iterator[str]:
    """Yield the names that a module uses but nothing defines, if the module has a source file."""
    module = importlib.import_module(name)
    if not isinstance(module.__loader__, SourceFileLoader):
        # The module is compiled, or there is bytecode only. There is no source to read.
        return
    source = module.__loader__.get_data(module.__loader__.path).decode()
    tree = ast.parse(source)
    known = vars(module).keys() | vars(builtins).keys() | GIVEN | _leave_out_types(tree)
    known |= _targets(tree)
    yield from sorted(set(_globals(symtable.symtable(source, name, "exec"), known)))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    yield from sorted(set(_of_modules(attributes, module)))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            inner = [each for each in attributes if node.lineno <= each.lineno <= (node.end_lineno or 0)]
            yield from sorted(_of_class(inner, vars(module)[node.name]))


def _leave_out_types(tree: ast.Module) -> set[str]:
    """Remove from the tree what only type checkers read, and return the names that are bound there.

    Such code may use names that do not exist when the program runs.
    """
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


def _targets(tree: ast.Module) -> set[str]:
    """Return the names that comprehensions bind.

    From Python 3.12 on such a name counts among those of the scope around it (PEP 709), and after
    the comprehension no object has that name.
    """
    loops = (node.target for node in ast.walk(tree) if isinstance(node, ast.comprehension))
    return {name.id for target in loops for name in ast.walk(target) if isinstance(name, ast.Name)}


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
    """Return the attributes of `self` that are read here but that no object of this class has."""
    if any(not base.__module__.startswith(PACKAGE) and base is not object for base in kind.__mro__):
        # Only the foreign base class knows which attributes its objects have.
        return set()
    known = set(dir(kind)) | GIVEN
    for base in kind.__mro__:
        known |= vars(base).get("__annotations__", {}).keys()
    own = [node for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "self"]
    known |= {node.attr for node in own if isinstance(node.ctx, ast.Store)}
    return {f"{kind.__name__}.{node.attr}" for node in own if isinstance(node.ctx, ast.Load) and node.attr not in known}

"""Sets process titles, by the compiled module of setproctitle alone.

`import setproctitle` would import logging and threading, and every worker would carry their memory.
The fork hook of threading also writes to many pages at each clone. The compiled module inside the
package needs neither.
"""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader, PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from collections.abc import Callable

TITLE_MAX = 120


def _load() -> Callable[[str], None]:
    package = PathFinder.find_spec("setproctitle")
    if package is None or package.submodule_search_locations is None:
        raise ImportError("setproctitle is not installed")
    spec = PathFinder.find_spec("_setproctitle", list(package.submodule_search_locations))
    if spec is None or not isinstance(spec.loader, ExtensionFileLoader):
        raise ImportError("setproctitle has no compiled module; version 1.3 or newer is needed")
    module = spec.loader.create_module(spec)
    spec.loader.exec_module(module)
    sys.modules.setdefault("_setproctitle", module)
    setproctitle: Callable[[str], None] = module.setproctitle
    return setproctitle


# Sets a title unchanged, but cut where the process's memory for titles ends.
show_title = _load()


def format_title(text: str, prefix: str = "poold:") -> str:
    """Return a title: `prefix`, then a text. Unprintable characters are dropped.

    The title has at most `TITLE_MAX` characters.
    """
    title = f"{prefix} {text}"
    if not title.isprintable():
        title = "".join(c for c in title if c.isprintable())
    return title[:TITLE_MAX]


def set_title(text: str) -> None:
    """Set the title `poold: text`, which ps(1) shows."""
    show_title(format_title(text))

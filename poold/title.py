"""Process titles, by the compiled part of setproctitle alone.

`import setproctitle` imports logging and with it threading; in the mold every worker would pay for both at every clone
(threading's fork hook alone touches over a hundred pages). The compiled module inside the package needs neither.
"""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader, PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
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


# Shows a title as it is, cut where the process's memory for it ends.
show = _load()


def titled(text: str, before: str = "poold:") -> str:
    """Return a title that goes on with a text, without control characters, of at most `TITLE_MAX` characters."""
    title = f"{before} {text}"
    if not title.isprintable():
        title = "".join(c for c in title if c.isprintable())
    return title[:TITLE_MAX]


def set_title(text: str) -> None:
    """Show `poold: text` as this process's name in ps(1)."""
    show(titled(text))

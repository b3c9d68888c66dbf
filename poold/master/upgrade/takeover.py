"""Restores the parts of the master from the state document of the previous program.

Each number of the document is checked before the number is used. A descriptor that is not what the
document says is not used. A listener without its socket is opened anew. A pid that is no child of
the master becomes a child with a lost exit status. Document and truth differ only if another
process has interfered with the master. Then all sessions are kept that can be kept.
"""

from collections.abc import Sequence
from typing import Any

from poold.master.document.part import Owner
from poold.master.upgrade.state import StateDocument


def restore_all(owners: Sequence[Owner[Any]], state: StateDocument) -> None:
    """Restore each owner from its part of the document.

    Raises ConfigError, OSError, LookupError.
    """
    for owner in owners:
        owner.restore(state)

"""From the state document of the program before to the parts of this one. Every number is proved before it is relied on.

A descriptor is what the document says it is or it is not used; a listener whose socket is not there is opened anew; a pid that is
no child of ours is a child whose exit status is lost. What stands in the document and what is true differ only if somebody has
meddled with the process, and then the sessions that can be kept are kept.
"""

from collections.abc import Sequence
from typing import Any

from poold.master.document.part import Owner
from poold.master.upgrade.state import StateDocument


def adopt(owners: Sequence[Owner[Any]], state: StateDocument) -> None:
    """Have every owner go on from its part of the document, one after the other. Raises ConfigError, OSError, LookupError."""
    for owner in owners:
        owner.restore(state)

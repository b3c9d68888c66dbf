"""The handler `cases`, whose import waits at a gate: as long as there is a FIFO at $GATE, until who opened it for writing closes it."""

import os
from pathlib import Path

from cases import serve

__all__ = ["serve"]

GATE = Path(os.environ["GATE"])

if GATE.is_fifo():
    GATE.read_bytes()

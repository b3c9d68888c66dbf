"""How a process ended."""

from dataclasses import dataclass
from resource import struct_rusage


@dataclass(slots=True)
class Exit:
    """How a process ended: its exit code (negative: signal; None: unknown) and what it used."""

    pid: int
    status: int | None
    usage: struct_rusage | None

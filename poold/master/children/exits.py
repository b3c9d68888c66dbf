"""The end of a process."""

from dataclasses import dataclass
from resource import struct_rusage


@dataclass(slots=True)
class Exit:
    """How a process ended, and the resources that the process used.

    `status` is the exit status. A negative status is a signal, None is unknown.
    """

    pid: int
    status: int | None
    usage: struct_rusage | None

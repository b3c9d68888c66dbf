"""The only place where the master becomes another program: execve, with exactly the descriptors that the next one is to have."""

import os
import sys
from collections.abc import Iterable, Mapping
from typing import NoReturn

from poold.master.spawn import arguments, memory_file

MODULE = "poold.master.successor"


def replace(document: bytes, fds: Iterable[int], environ: Mapping[str, str]) -> NoReturn:
    """Become `poold.master.successor` of the code that is on disk now: the same process, the same children.

    It gets the document, these descriptors, and this environment. Raises OSError when it cannot be, and everything is as it was.
    """
    state = memory_file("state", document)
    inherited = [state, *fds]
    try:
        for fd in inherited:
            os.set_inheritable(fd, True)
        os.execve(sys.executable, arguments(MODULE, {"state": state}), dict(environ))
    finally:
        for fd in inherited:
            os.set_inheritable(fd, False)
        os.close(state)

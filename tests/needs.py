"""What a test needs of the machine; it is skipped, by name, where that is not there."""

import os
import shutil

import pytest

from poold.mold import prefault

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this")


def rings_are_allowed() -> bool:
    """Say whether this machine lets a process pin pages (Linux 5.18, and nothing that forbids io_uring)."""
    ring = prefault.open_ring()
    if ring >= 0:
        os.close(ring)
    return ring >= 0


needs_rings = pytest.mark.skipif(not rings_are_allowed(), reason="no process may have an io_uring here")

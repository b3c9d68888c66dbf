"""Who a child is and what it may do: groups, gid, uid, the signal at its parent's death, who may look into it. In this order, or it dies.

Used by the children themselves. Whoever calls `become` and gets an exception must end: half a change of identity is worse
than none.
"""

from __future__ import annotations

import ctypes
import os
import signal
from array import array
from os import getppid
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Sequence
    from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_SIGTERM, _SIGKILL = int(signal.SIGTERM), int(signal.SIGKILL)
# Looked up once, before any clone. PyDLL, because a call that keeps the interpreter's lock touches less, and prctl does not wait. Small
# numbers go as they are: an object of ctypes for each would be made and thrown away at each call.
_prctl = ctypes.PyDLL(None, use_errno=True).prctl

# capget(2), capset(2): version 3 of the interface, this process; effective, permitted and inheritable sets, in two words each.
_capget = ctypes.PyDLL(None, use_errno=True).capget
_capset = ctypes.PyDLL(None, use_errno=True).capset
_CAPABILITY_HEAD = (0x20080522).to_bytes(4, byteorder) + bytes(4)
_NO_CAPABILITIES = bytes(24)


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def become(*, uid: int, gid: int, groups: Sequence[int]) -> None:
    """Change to this user for ever and make sure of it; raise OSError or PermissionError.

    Groups first, because only a privileged process may set them; then the gid, then the uid (setresuid(2)). The saved ids
    too, or the old identity could be taken back.
    """
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or set(os.getgroups()) != set(groups):
        raise PermissionError("the change of user did not take effect")
    if uid != 0:
        try:
            os.setresuid(0, 0, 0)
        except PermissionError:
            return
        raise PermissionError("root could be taken back after the change of user")


def become_identity(identity: dict[str, Any] | None) -> bool:
    """Do `become` for an identity as it crosses a process boundary; say whether it was another one. None is whoever this process is.

    Who is not root has no capability afterwards, not one to inherit either, which a change of user does not take away (capabilities(7)).
    """
    if identity is None:
        return False
    uid, gid, groups = identity["uid"], identity["gid"], identity["groups"]
    changed = _become_another(uid, gid, groups)
    if uid != 0 and _has_capabilities() and _capset(_CAPABILITY_HEAD, _NO_CAPABILITIES):
        raise _failure()
    return changed


def _has_capabilities() -> bool:
    """Say whether this process has any. Asked first: a filter of system calls may forbid capset(2), as systemd's @privileged does."""
    sets = array("B", _NO_CAPABILITIES)
    if _capget(_CAPABILITY_HEAD, ctypes.c_void_p(sets.buffer_info()[0])):
        raise _failure()
    return any(sets)


def _become_another(uid: int, gid: int, groups: Sequence[int]) -> bool:
    if os.getresuid() == (uid, uid, uid) and os.getresgid() == (gid, gid, gid) and set(os.getgroups()) == set(groups):
        return False
    become(uid=uid, gid=gid, groups=groups)
    # A change of user sets it to what the system says, which may be anything (proc(5), suid_dumpable).
    hide()
    return True


def die_with(parent: int) -> bool:
    """Get TERM when the parent dies, and say whether it still lives: it may have died before this call (prctl(2)).

    To be called after the last change of user, which clears it. `parent` must be the parent's own word for its pid: after its death
    getppid() gives another's, who may live for ever.
    """
    if _prctl(_PR_SET_PDEATHSIG, _SIGTERM, None, None, None):
        raise _failure()
    return getppid() == parent


def vanish_with(parent: int | None) -> None:
    """Be killed when the parent dies, or end now if it has: for processes without clients, which may be deaf to anything gentler.

    An import or a name service may hang for minutes, and code that is being imported may have caught TERM. None: the parent is of
    an older version, which does not say who it is.
    """
    if _prctl(_PR_SET_PDEATHSIG, _SIGKILL, None, None, None):
        raise _failure()
    if parent is not None and os.getppid() != parent:
        os._exit(0)


def hide() -> None:
    """Let nobody but root look into this process, trace it or take its descriptors, not its own user either (prctl(2), PR_SET_DUMPABLE).

    Every execve(2) undoes it, so it comes first in whatever program has something that sessions must not have. Such a process cannot write
    its own /proc files (proc(5)), and its user does not see it where /proc hides what may not be looked into (hidepid). Clones inherit it.
    """
    if _prctl(_PR_SET_DUMPABLE, 0, None, None, None):
        raise _failure()


def be_seen() -> None:
    """Let this process be looked into by its own user, also after a change of user (prctl(2)); for one that has let go of its secrets."""
    if _prctl(_PR_SET_DUMPABLE, 1, None, None, None):
        raise _failure()


def adopt_orphans() -> None:
    """Make this process the one that orphans below it fall to."""
    if _prctl(_PR_SET_CHILD_SUBREAPER, 1, None, None, None):
        raise _failure()

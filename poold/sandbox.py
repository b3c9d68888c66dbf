"""Changes the identity of a child and limits what other processes may do with the child.

The children call these functions themselves. They change groups, gid and uid, set the signal that
the kernel sends at the parent's death, and forbid inspection. A caller of `become` must end on an
exception, because half a change of identity is worse than none.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from os import getppid
from sys import byteorder

from poold.plain import SIGKILL, SIGTERM

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from collections.abc import Sequence
    from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
# Looked up here, before any clone. PyDLL keeps the interpreter's lock during a call. Such a call
# writes to fewer pages, and prctl(2) does not wait. Small numbers are Python integers: for an
# object of ctypes each call would make and free a wrapper.
_prctl = ctypes.PyDLL(None, use_errno=True).prctl

# capget(2), capset(2): version 3 of the interface, for this process. The effective, permitted and
# inheritable sets have two words each.
_capget = ctypes.PyDLL(None, use_errno=True).capget
_capset = ctypes.PyDLL(None, use_errno=True).capset
_CAPABILITY_HEAD = (0x20080522).to_bytes(4, byteorder) + bytes(4)
_NO_CAPABILITIES = bytes(24)


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def become(*, uid: int, gid: int, groups: Sequence[int]) -> None:
    """Change to this user for good, and check the result. Raises OSError, PermissionError.

    The order is groups, gid, uid, because only a privileged process may set groups and gid
    (setresuid(2)). The saved ids change as well. With an old saved id the process could go back to
    the old identity.
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
    """Become the user that a message names. Return whether this process had another identity.

    None stands for the present identity. A process that is not root has no capability afterwards.
    This includes inheritable capabilities, which a change of user leaves (capabilities(7)).
    """
    if identity is None:
        return False
    uid, gid, groups = identity["uid"], identity["gid"], identity["groups"]
    changed = _change_identity(uid, gid, groups)
    if uid != 0 and _has_capabilities() and _capset(_CAPABILITY_HEAD, _NO_CAPABILITIES):
        raise _last_error()
    return changed


def _has_capabilities() -> bool:
    """Return whether this process has any capability.

    This call comes before capset(2), which a filter of system calls may forbid, as systemd's
    @privileged does.
    """
    sets = array("B", _NO_CAPABILITIES)
    if _capget(_CAPABILITY_HEAD, ctypes.c_void_p(sets.buffer_info()[0])):
        raise _last_error()
    return any(sets)


def _change_identity(uid: int, gid: int, groups: Sequence[int]) -> bool:
    if os.getresuid() == (uid, uid, uid) and os.getresgid() == (gid, gid, gid) and set(os.getgroups()) == set(groups):
        return False
    become(uid=uid, gid=gid, groups=groups)
    # A change of user sets the process's dumpable flag to the system's value (proc(5),
    # suid_dumpable).
    forbid_inspection()
    return True


def terminate_with_parent(parent_pid: int) -> bool:
    """Let the kernel send TERM to this process at the parent's death (prctl(2)).

    Return whether the parent is still alive, because it may have died before this call. The call
    comes after the last change of user, which clears the setting. The parent itself must have told
    its pid: after the parent's death getppid(2) returns the pid of another process.
    """
    if _prctl(_PR_SET_PDEATHSIG, SIGTERM, None, None, None):
        raise _last_error()
    return getppid() == parent_pid


def kill_with_parent(parent_pid: int | None) -> None:
    """Let the kernel kill this process at the parent's death. End now if the parent is dead.

    This is for processes without clients. An import or a name service may hang for minutes, and
    imported code may have caught TERM. None: a parent of an older version has not told its pid.
    """
    if _prctl(_PR_SET_PDEATHSIG, SIGKILL, None, None, None):
        raise _last_error()
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(0)


def forbid_inspection() -> None:
    """Let only root trace this process, read its memory or take its descriptors.

    Its own user may not either (prctl(2), PR_SET_DUMPABLE). Each execve(2) undoes this, so the call
    comes first in a program that has something which sessions must not have. Clones inherit the
    setting. The process cannot write its own /proc files (proc(5)). With hidepid, /proc hides the
    process from its own user.
    """
    if _prctl(_PR_SET_DUMPABLE, 0, None, None, None):
        raise _last_error()


def allow_inspection() -> None:
    """Undo `forbid_inspection`, also after a change of user (prctl(2)).

    The caller must have closed everything that sessions must not have.
    """
    if _prctl(_PR_SET_DUMPABLE, 1, None, None, None):
        raise _last_error()


def adopt_orphans() -> None:
    """Make this process the parent of orphans among its descendants (prctl(2), subreaper)."""
    if _prctl(_PR_SET_CHILD_SUBREAPER, 1, None, None, None):
        raise _last_error()

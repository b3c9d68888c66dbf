"""Whom children run as: account names turned into numbers once, because name services may block (getpwnam(3)).

Asked at the start and by the trial of a reload, never by the running master.
"""

import os
import pwd
from typing import Any

from poold.settings.config import People
from poold.settings.preflight import find_group, find_user
from poold.settings.schema import Config, Listener, Server


def people(server: Server) -> People:
    """Look up whom the settings name. Raises LookupError for an account that does not exist (any more)."""
    variables = {}
    if server.user is not None:
        entry = _user(server.user)
        variables = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name, "SHELL": entry.pw_shell or "/bin/sh"}
    workers = _identity(server)
    return People(workers, workers or _nobody(), variables)


def _user(name: str) -> pwd.struct_passwd:
    entry = find_user(name)
    if entry is None:
        raise LookupError(f"there is no user {name!r}")
    return entry


def _group(name: str) -> int:
    entry = find_group(name)
    if entry is None:
        raise LookupError(f"there is no group {name!r}")
    return entry.gr_gid


def _identity(server: Server) -> dict[str, Any] | None:
    if os.geteuid() != 0 or (server.user is None and server.group is None and server.groups is None):
        return None
    entry = _user(server.user if server.user is not None else str(os.geteuid()))
    gid = _group(server.group) if server.group is not None else entry.pw_gid
    if server.groups is not None:
        groups = [_group(name) for name in server.groups]
    else:
        groups = os.getgrouplist(entry.pw_name, gid)
    return {"uid": entry.pw_uid, "gid": gid, "groups": sorted(set(groups))}


def _nobody() -> dict[str, Any] | None:
    """Return the identity of a helper of root's that needs no rights; None where the master has none to give away."""
    if os.geteuid() != 0:
        return None
    entry = _user("nobody")
    return {"uid": entry.pw_uid, "gid": entry.pw_gid, "groups": []}


def numbered(config: Config) -> Config:
    """Return the settings with owners of unix sockets as numbers. Raises LookupError."""

    def number(listener: Listener) -> Listener:
        owner = None if listener.owner is None else str(_user(listener.owner).pw_uid)
        group = None if listener.group is None else str(_group(listener.group))
        return listener.model_copy(update={"owner": owner, "group": group})

    return config.model_copy(update={"listeners": tuple(number(listener) for listener in config.listeners)})

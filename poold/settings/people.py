"""The accounts of children: names become numbers here, once.

A judging process looks the names up. The running master never does, because a name service may
block (getpwnam(3)).
"""

import os
import pwd
from dataclasses import replace
from typing import Any

from poold.settings.config import Config, Listener, People, Server
from poold.settings.preflight import find_group, find_user


def people(server: Server) -> People:
    """Return the identities that the settings name. Raises LookupError for a missing account."""
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
    """Return the identity of mold and workers; None where that is the master's own."""
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
    """Return the identity of an exporter of root's; None where the master is not root."""
    if os.geteuid() != 0:
        return None
    entry = _user("nobody")
    return {"uid": entry.pw_uid, "gid": entry.pw_gid, "groups": []}


def numbered(config: Config) -> Config:
    """Return the settings with owners of unix sockets as numbers. Raises LookupError."""

    def number(listener: Listener) -> Listener:
        owner = None if listener.owner is None else str(_user(listener.owner).pw_uid)
        group = None if listener.group is None else str(_group(listener.group))
        return replace(listener, owner=owner, group=group)

    return replace(config, listeners=tuple(number(listener) for listener in config.listeners))

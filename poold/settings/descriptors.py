"""Open files: what the master may come to need with given settings, and whether its limit allows that. Pure.

Here and not with the master, because whoever judges settings says it: with key and line, before anything is opened.
"""

from resource import RLIM_INFINITY

from poold.settings.config import Config

# Births under way at one time: more would only queue up in the mold.
BIRTHS_MAX = 64
# Refused clients that are still being told so.
LINGER_MAX = 64
# Standard streams, selector, wakeup pair, shared memories and views of them, control, metrics, lifelines, and what a start of a
# process needs for a moment.
FIXED = 48


def needed(config: Config) -> int:
    """Return how many descriptors the master may come to have open with these settings."""
    pool = config.pool
    channels = min(pool.max_children, max(pool.min_spare, pool.max_spare) + BIRTHS_MAX)
    if pool.connections_per_child != 1:
        channels = pool.max_children
    # Each worker has an activity page, and each session that waits for its worker's acknowledgement its connection.
    pages = pool.max_children if config.server.command is None else 0
    return FIXED + len(config.listeners) + channels + pages + min(pool.max_children, 2 * BIRTHS_MAX) + LINGER_MAX


def shortage(config: Config, hard: int) -> tuple[str, str] | None:
    """Return which key of [pool] asks for more than the hard limit of open files, and what to say of it; None if none does."""
    need = needed(config)
    if hard == RLIM_INFINITY or need <= hard:
        return None
    pool = config.pool
    key = "max_children"
    spares = max(pool.min_spare, pool.max_spare)
    if config.server.command is not None and pool.connections_per_child == 1 and spares + BIRTHS_MAX < pool.max_children:
        key = "max_spare" if pool.max_spare >= pool.min_spare else "min_spare"
    message = f"{need} open files may be needed, and the hard limit is {hard}: lower {key}, or raise the limit (LimitNOFILE=, ulimit -Hn)"
    return key, message

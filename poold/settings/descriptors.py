"""Open files: how many descriptors the master may need, and whether a limit allows so many.

The functions depend on their arguments alone. A judging process calls them too, so that `poold
check` can name the key before the master opens anything.
"""

from resource import RLIM_INFINITY

from poold.settings.config import Config

# Births under way at one time. The mold makes one clone after the other, so more would only wait.
BIRTHS_MAX = 64
# Refused clients whose connections the master still holds until the refusal has left.
LINGER_MAX = 64
# Standard streams, selector, wakeup pair, shared memories and views of them, control, metrics,
# lifelines. The start of a process takes some for a moment.
FIXED = 48


def needed(config: Config) -> int:
    """Return the most descriptors that the master can have open with these settings."""
    pool = config.pool
    channels = min(pool.max_children, max(pool.min_spare, pool.max_spare) + BIRTHS_MAX)
    if pool.connections_per_child != 1:
        channels = pool.max_children
    # The master holds an activity page for each worker, and a connection for each session that no
    # worker has acknowledged.
    pages = pool.max_children if config.server.command is None else 0
    return FIXED + len(config.listeners) + channels + pages + min(pool.max_children, 2 * BIRTHS_MAX) + LINGER_MAX


def shortage(config: Config, hard: int) -> tuple[str, str] | None:
    """Return the key of [pool] that needs more than the hard limit of open files, and a message.

    None means that the limit is high enough.
    """
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

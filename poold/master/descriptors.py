"""Open files: what the master needs at most, and the limit that allows it."""

import resource

from poold.errors import ConfigError, Problem
from poold.master.linger import LINGER_MAX
from poold.master.orders import BIRTHS_MAX
from poold.settings.config import Config

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


def limits() -> tuple[int, int]:
    """Return the soft and the hard limit of this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def judge(config: Config) -> None:
    """Raise ConfigError when the hard limit does not allow what these settings need."""
    hard, need = limits()[1], needed(config)
    if hard != resource.RLIM_INFINITY and hard < need:
        message = f"{need} open files may be needed, and the hard limit is {hard}; raise LimitNOFILE= or lower max_children"
        raise ConfigError([Problem("pool.max_children", message)])


def raise_limit(config: Config) -> tuple[int, int]:
    """Raise the soft limit to what is needed and return the limits as they were, for children. Raises ConfigError."""
    judge(config)
    soft, hard = limits()
    need = needed(config)
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need if hard == resource.RLIM_INFINITY else hard, hard))
    return soft, hard

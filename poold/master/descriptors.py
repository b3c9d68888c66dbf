"""The master's limit of open files.

`poold.settings.descriptors` computes how many descriptors the master needs.
"""

import resource

from poold.errors import ConfigError, Problem
from poold.settings.config import Config
from poold.settings.descriptors import needed, shortage


def limits() -> tuple[int, int]:
    """Return the soft and the hard limit of this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_limit(config: Config) -> tuple[int, int]:
    """Raise the soft limit to what the settings need. Raises ConfigError.

    Return the limits as they were before, for the children.
    """
    soft, hard = limits()
    short = shortage(config, hard)
    if short is not None:
        # The process that judged the settings may have had another limit.
        raise ConfigError([Problem(f"pool.{short[0]}", short[1])])
    need = needed(config)
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need if hard == resource.RLIM_INFINITY else hard, hard))
    return soft, hard

"""The settings in force: one frozen value, replaced in one assignment by whoever commits a reload."""

from dataclasses import dataclass

from poold.settings.schema import Config


@dataclass(slots=True)
class Current:
    """What every part of the master reads and only the commit of a reload writes. Generations count from 1."""

    config: Config
    generation: int = 1

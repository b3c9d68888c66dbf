"""The settings in force: one frozen value, replaced in one assignment by whoever commits a reload."""

from dataclasses import dataclass

from poold.settings.config import Config, People


@dataclass(slots=True)
class Current:
    """What every part of the master reads and only the commit of a reload writes. Generations count from 1.

    `warnings` are what an operator should know of settings that are used all the same.
    """

    config: Config
    people: People
    generation: int = 1
    warnings: tuple[str, ...] = ()

    def replace(self, new: "Current") -> None:
        """Put other settings in force."""
        self.config, self.people, self.generation, self.warnings = new.config, new.people, new.generation, new.warnings

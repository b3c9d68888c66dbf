"""The settings in force. The commit of a reload replaces them."""

from dataclasses import dataclass

from poold.settings.config import Config, People


@dataclass(slots=True)
class Current:
    """The settings that every part reads and that only the commit of a reload writes.

    Generations count from 1. `warnings` are what an operator should know of these settings.
    """

    config: Config
    people: People
    generation: int = 1
    warnings: tuple[str, ...] = ()

    def replace(self, new: "Current") -> None:
        """Put other settings in force."""
        self.config, self.people, self.generation, self.warnings = new.config, new.people, new.generation, new.warnings

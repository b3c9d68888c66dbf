"""Which attacks come in which order: rounds of all of them, each round shuffled by the seed."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from random import Random

from tests.soak.hostile import clients, control, imports, machine, scrapers, sessions, settings
from tests.soak.hostile.attack import Attack, Lane

ATTACKS: tuple[Attack, ...] = (
    *sessions.ATTACKS,
    *imports.ATTACKS,
    *clients.ATTACKS,
    *scrapers.ATTACKS,
    *control.ATTACKS,
    *settings.ATTACKS,
    *machine.ATTACKS,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One attack of a plan. `number` counts within its lane, from 1."""

    number: int
    attack: Attack
    random: Random


def plan(seed: int, lane: Lane, only: Collection[str] = ()) -> Iterator[Step]:
    """Yield the steps of a lane without end, or none where it has no attack of these names."""
    attacks = [attack for attack in ATTACKS if attack.lane is lane]
    if only and not any(attack.name in only for attack in attacks):
        return
    number = round_ = 0
    while True:
        order = list(attacks)
        Random(f"{seed} {lane} {round_}").shuffle(order)
        for attack in order:
            number += 1
            if not only or attack.name in only:
                yield Step(number, attack, Random(f"{seed} {lane} {number}"))
        round_ += 1

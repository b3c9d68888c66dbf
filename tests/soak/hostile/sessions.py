"""Sessions that do their worst: each deed of tests/handlers/hostile.py is an attack."""

import contextlib
from random import Random

from tests.handlers import hostile
from tests.soak.hostile.attack import Act, Kind, named
from tests.soak.hostile.scene import Scene

# How long a client waits for the end of a session that does its worst; some have no end of their own while their orphans live.
PATIENCE = 8.0
# Deeds that weigh much are done once at a time.
ALONE = {
    "fork-bomb",
    "very-many-statuses",
    "stopped-orphans",
    "out-of-memory",
    "burn-its-cpu-time",
    "orphans-that-die-oddly",
    "print-long-lines",
}


def deed(name: str) -> Act:
    """Return the attack of sessions that do one deed, up to three at a time."""

    def act(scene: Scene, random: Random) -> None:
        count = 1 if name in ALONE else random.randrange(1, 4)
        clients = [scene.connect(random.randrange(4), PATIENCE) for _ in range(count)]
        try:
            for client in clients:
                client.send(f"deed {name} {random.randrange(1 << 30)}\n".encode())
            for client in clients:
                # Sessions may die, be silent, or leave somebody behind who keeps the connection open.
                with contextlib.suppress(OSError):
                    answer = client.file.readline() if random.random() < 0.9 else b""
                    assert not answer.startswith(b"GOT"), f"a session that did {name} {answer.decode(errors='replace')}"
                    if random.random() < 0.5:
                        client.finish()
        finally:
            for client in clients:
                if random.random() < 0.5:
                    client.close()
                else:
                    client.reset()

    return act


ATTACKS = named(Kind.SESSION, {name: deed(name) for name in hostile.DEEDS})

"""Settings files that are no settings, and settings that go up and down. What is right is applied, and what is not is refused."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.soak.hostile.attack import Act, Kind, named
from tests.soak.hostile.scene import MAX_CHILDREN, Scene
from tests.support import Client


@contextlib.contextmanager
def put_back(scene: Scene) -> Iterator[None]:
    """Have the settings that are right again afterwards."""
    try:
        yield
    finally:
        scene.restore()


def refused(content: Callable[[bytes, Random], bytes]) -> Act:
    """Return the attack of a file that is made from the right one and must be refused."""

    def act(scene: Scene, random: Random) -> None:
        with put_back(scene):
            scene.refuses(content(scene.daemon.config.read_bytes(), random))

    return act


def cut(right: bytes, random: Random) -> bytes:
    """Cut it within a text: nobody can take that for the whole of it."""
    quotes = [at for at in range(len(right)) if right[at : at + 1] == b'"'][::2]
    return right[: random.choice(quotes) + 1]


def changed(**choices: list[Any]) -> Act:
    """Return the attack of settings that are right, one of the choices of each key, and must be applied."""

    def act(scene: Scene, random: Random) -> None:
        with put_back(scene):
            for _ in range(2):
                scene.applies(**{key: random.choice(values) for key, values in choices.items()})

    return act


def wrong(**choices: list[Any]) -> Act:
    """Return the attack of settings of which one is not right."""

    def act(scene: Scene, random: Random) -> None:
        with put_back(scene):
            key = random.choice(list(choices))
            scene.refuses(**{key: random.choice(choices[key])})

    return act


def replaced(make: Callable[[Path, Random], object]) -> Act:
    """Return the attack of something else in the file's place, which must be refused and must not make the master wait."""

    def act(scene: Scene, random: Random) -> None:
        config = scene.daemon.config
        with put_back(scene):
            config.unlink()
            make(config, random)
            told = scene.reload()
            assert told.status == 1, f"something that is no file was taken for the settings: {told}"

    return act


def bound(path: Path, random: Random) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def sparse(path: Path, random: Random) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def linked(scene: Scene, random: Random) -> None:
    """Put the right settings behind a link; they are right."""
    config, elsewhere = scene.daemon.config, scene.folder / "elsewhere.toml"
    with put_back(scene):
        config.rename(elsewhere)
        config.symlink_to(elsewhere)
        told = scene.reload()
        assert told.status == 0, f"the settings behind a link were not applied: {told}"
    elsewhere.unlink()


def pipe_with_a_writer(scene: Scene, random: Random) -> None:
    """Put a pipe in the file's place, whose writer dawdles."""
    config = scene.daemon.config
    end = threading.Event()

    def dawdle() -> None:
        with contextlib.suppress(OSError):
            fd = os.open(config, os.O_RDWR)
            os.write(fd, b"[server]\n")
            end.wait(20)
            os.close(fd)

    with put_back(scene):
        config.unlink()
        os.mkfifo(config)
        writer = threading.Thread(target=dawdle)
        writer.start()
        try:
            told = scene.reload()
            assert told.status == 1, f"a pipe was taken for the settings: {told}"
        finally:
            end.set()
            writer.join()


def listeners_come_and_go(scene: Scene, random: Random) -> None:
    """Add a listener, be its client, and take it away with its client inside."""
    number = random.randrange(4)
    path = scene.folder / "run" / f"extra-{number}.sock"
    more = f'[[listener]]\naddress = "unix://{path}"\nname = "extra-{number}"\nmode = "0666"\n'
    more += '[[listener]]\naddress = "tcp://127.0.0.1:0"\nname = "extra-tcp"\nbacklog = 16\n' if random.random() < 0.5 else ""
    with contextlib.ExitStack() as stack:
        with put_back(scene):
            scene.applies(more)
            client = stack.enter_context(Client(str(path)))
            assert client.ask("echo new") == "new", "the client of a listener that was added was not served"
        assert client.ask("echo still") == "still", "the client of a listener that was taken away was not served to its end"
    assert not path.exists(), f"a listener that was taken away has left {path.name}"


def twice_at_a_time(scene: Scene, random: Random) -> None:
    """Write the file anew while reloads of it run: each is judged as it was read, whole or cut."""
    right = scene.daemon.config.read_bytes()
    with put_back(scene):
        for _ in range(6):
            scene.daemon.config.write_bytes(cut(right, random))
            scene.daemon.kill(1)
            scene.daemon.config.write_bytes(right)
            scene.daemon.kill(1)


ATTACKS = named(
    Kind.SETTINGS,
    {
        "settings-empty": refused(lambda right, random: b""),
        "settings-of-comments": refused(lambda right, random: b"# nothing\n" * random.randrange(1, 1000)),
        "settings-cut": refused(cut),
        "settings-binary": refused(lambda right, random: random.randbytes(5000)),
        "settings-NULs": refused(lambda right, random: right + b"\0" * 100),
        "settings-deep": refused(lambda right, random: right + b"\n[x]\na = " + b"[" * 20_000 + b"]" * 20_000),
        "settings-deep-tables": refused(lambda right, random: right + b"\n[" + b"a." * 20_000 + b"a]\n"),
        "settings-large": refused(lambda right, random: right + b"# x\n" * (1 << 19)),
        "settings-many-keys": refused(lambda right, random: right + b"\n[more]\n" + b"".join(b"k%d = 1\n" % n for n in range(30_000))),
        "settings-many-listeners": refused(
            lambda right, random: right + b"".join(b'[[listener]]\naddress = "tcp://127.0.0.1:0"\nname = "n%d"\n' % n for n in range(100))
        ),
        "settings-twice": refused(lambda right, random: right + right),
        "settings-large-number": refused(lambda right, random: right.replace(b"max_children = 64", b"max_children = " + b"9" * 5000)),
        "settings-are-a-folder": replaced(lambda path, random: path.mkdir()),
        "settings-are-gone": replaced(lambda path, random: None),
        "settings-are-a-pipe": replaced(lambda path, random: os.mkfifo(path)),
        "settings-are-a-socket": replaced(bound),
        "settings-are-a-device": replaced(lambda path, random: path.symlink_to(random.choice(["/dev/zero", "/dev/tty", "/dev/full"]))),
        "settings-are-a-loop": replaced(lambda path, random: path.symlink_to(path)),
        "settings-are-a-process": replaced(lambda path, random: path.symlink_to("/proc/self/mem")),
        "settings-are-a-terabyte": replaced(sparse),
        "settings-behind-a-link": linked,
        "settings-behind-a-slow-pipe": pipe_with_a_writer,
        "settings-change-twice-at-a-time": twice_at_a_time,
        "settings-cap-up-and-down": changed(pool__max_children=[16, 24, 40, MAX_CHILDREN]),
        "settings-spares-up-and-down": changed(pool__min_spare=[0, 1, 4, 12], pool__max_spare=[12, 16]),
        "settings-formats-of-the-log": changed(log__format=["text", "json"], log__level=["debug", "info", "warning", "error"]),
        "settings-times-up-and-down": changed(timeouts__startup=[20, 40], timeouts__kill=[1, 5], timeouts__drain=[0, 5]),
        "settings-import-in-each-worker": changed(pool__preload=[False]),
        "settings-listeners-come-and-go": listeners_come_and_go,
        "settings-that-are-wrong": wrong(
            pool__max_children=[0, -1, 1 << 40, "many", 1.5, True],
            pool__min_spare=[-1, 65, "x"],
            server__user=["no-such-user", "\x1b[2J", ""],
            server__handler=["nosuch:serve", "hostile", "hostile:nothing", ":", "\x1b:x", "os:getcwd:x"],
            timeouts__startup=[0, -5, "1 fortnight", "9" * 4000],
            log__level=["loud"],
            control__socket=["/proc/nowhere/x", "x" * 300],
            nosuch__key=[1],
        ),
    },
)

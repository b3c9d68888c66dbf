"""What a machine does to a daemon: processes are stopped and killed, limits fall, files vanish, nobody reads the log."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.faultkit import out_of_files
from tests.procfs import gone, shows, state
from tests.soak.hostile.attack import Act, Kind, named
from tests.soak.hostile.scene import Scene
from tests.support import Client
from tests.waiting import eventually


def stopped(word: str, least: float, most: float) -> Act:
    """Return the attack of a process that does not run for so long; "master" or the word of a child's title."""

    def act(scene: Scene, random: Random) -> None:
        for pid in _those(scene, word)[:2]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                try:
                    time.sleep(random.uniform(least, most))  # that time passes is the attack
                finally:
                    os.kill(pid, signal.SIGCONT)
        _answers(scene)

    return act


def killed(word: str, number: int = signal.SIGKILL, times: int = 1) -> Act:
    """Return the attack of a child that dies, so many times."""

    def act(scene: Scene, random: Random) -> None:
        for _ in range(random.randrange(1, times + 1)):
            end_all(scene, word, number=number)
            time.sleep(random.uniform(0, 0.3))  # so that it comes at various moments of the next one's life
        _answers(scene)

    return act


def trial_is_killed(scene: Scene, random: Random) -> None:
    """Kill whoever judges the settings of a reload."""
    scene.daemon.kill(signal.SIGHUP)
    killed("trial", times=5)(scene, random)


def end(pid: int, word: str, number: int = signal.SIGKILL) -> None:
    """Send a signal that ends a process, if it is what its title said: a clone has a mold's at first, a spare's next, then a session's.

    Its title changes before a session is acknowledged. So who stands still with another title than a session's has no client of its own.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: state(pid) in ("T", "Z", ""), "a process that stands still")
        if shows(pid, f"poold: {word}"):
            os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)


def end_all(scene: Scene, *words: str, number: int = signal.SIGKILL) -> None:
    """End all with these titles; not spares: two may be one client's first and second worker, whose session is lost by right."""
    for word in words:
        for pid in scene.titled(word):
            end(pid, word, number)


def spares_die(scene: Scene, random: Random) -> None:
    """Kill spares, one after the other."""
    for _ in range(random.randrange(1, 20)):
        for pid in scene.titled("spare")[:1]:
            end(pid, "spare")
            # It is waited for here: a client that it may have been given comes before the next one from now on.
            eventually(lambda pid=pid: gone(pid) or not shows(pid, "poold: spare"), "its end")
        # So that client has its second worker before the next one dies.
        with scene.connect() as client:
            assert client.ask("echo after a spare") == "after a spare", "a client was not served after a spare had died"
    _answers(scene)


def _those(scene: Scene, word: str) -> list[int]:
    return [scene.master] if word == "master" else scene.titled(word)


def _answers(scene: Scene) -> None:
    """See that a client is served, and a scrape answered."""
    with scene.connect() as client:
        answer = client.ask("echo afterwards")
    assert answer == "afterwards", f"a client got {answer!r} after the machine's fault"
    eventually(lambda: _scraped(scene), "a scrape that is answered")


def _scraped(scene: Scene) -> bool:
    try:
        return scene.daemon.get("/metrics") == 200
    except OSError:
        # There is no exporter just now.
        return False


def signals(*numbers: int, times: int) -> Act:
    """Return the attack of many signals to the master."""

    def act(scene: Scene, random: Random) -> None:
        for _ in range(times):
            scene.daemon.kill(random.choice(numbers))
            if random.random() < 0.2:
                time.sleep(random.uniform(0, 0.02))  # so that some come together and some do not
        _answers(scene)
        told = scene.reload()
        assert told.status == 0, f"a reload after many signals: {told}"

    return act


def upgrade(scene: Scene, random: Random) -> None:
    """Replace the program in the middle of it all."""

    def done() -> bool:
        told = scene.ask("upgrade")
        assert told.status == 0 or "busy" in told.text or "running" in told.text, f"an upgrade: {told}"
        return told.status == 0

    eventually(done, "an upgrade that is applied", seconds=60)
    _answers(scene)


def upgrades_and_reloads(scene: Scene, random: Random) -> None:
    """Ask for upgrades and reloads by signals, all at one time."""
    for _ in range(4):
        scene.daemon.kill(random.choice([signal.SIGUSR2, signal.SIGHUP]))
        time.sleep(random.uniform(0, 0.5))  # so that they meet at various moments
    told = scene.reload()
    assert told.status == 0, f"a reload after upgrades: {told}"
    _answers(scene)


def upgrade_among_deaths(scene: Scene, random: Random) -> None:
    """Have molds, trials and exporters die at each moment of an upgrade: it is applied, or everything is as it was."""
    scene.daemon.kill(signal.SIGUSR2)
    for _ in range(random.randrange(1, 8)):
        word = random.choice(["trial", "exporter", "mold"])
        for pid in scene.titled(word)[-1:]:
            end(pid, word, random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV]))
        time.sleep(random.uniform(0, 0.3))  # so that it comes at various moments
    _answers(scene)
    upgrade(scene, random)


def reload_among_deaths(scene: Scene, random: Random) -> None:
    """The same of a reload."""
    for _ in range(random.randrange(1, 8)):
        scene.daemon.kill(signal.SIGHUP)
        word = random.choice(["trial", "exporter", "mold"])
        for pid in scene.titled(word)[-1:]:
            end(pid, word, random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV]))
        time.sleep(random.uniform(0, 0.3))  # so that it comes at various moments
    _answers(scene)
    told = scene.reload()
    assert told.status == 0, f"a reload after deaths: {told}"


def reader_of_the_log_leaves(scene: Scene, random: Random) -> None:
    """Have nobody at the other end of the log for a moment, while molds and exporters die and are started anew."""
    with scene.log.left():
        end_all(scene, "mold", "exporter")
        with scene.connect() as client:
            client.send(b"deed print-many-lines 1\n")
            client.line()
        time.sleep(random.uniform(0.2, 1))  # that time passes is the attack
        with scene.connect() as client:
            answer = client.ask("echo to nobody")
        assert answer == "to nobody", f"a client got {answer!r} while the log had no reader"
    _answers(scene)


def no_descriptors(scene: Scene, random: Random) -> None:
    """Let the master open nothing for a moment, while children die and clients come."""
    with out_of_files(scene.master):
        end_all(scene, "mold")
        if random.random() < 0.5:
            scene.daemon.kill(signal.SIGHUP)
        time.sleep(random.uniform(0.2, 1))  # that time passes is the attack
    _answers(scene)


@contextlib.contextmanager
def out_of_memory(pid: int, more: int) -> Iterator[None]:
    """Let a process have so many bytes more of address space, and no more (getrlimit(2), RLIMIT_AS)."""
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    size = int(Path(f"/proc/{pid}/statm").read_text(errors="replace").split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (size + more, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_AS, before)


def no_memory(scene: Scene, random: Random) -> None:
    """Let the master have little memory for a moment, and ask for a reload."""
    with out_of_memory(scene.master, random.choice([1 << 20, 4 << 20, 8 << 20])):
        scene.daemon.kill(signal.SIGHUP)
        time.sleep(random.uniform(0.5, 1.5))  # that time passes is the attack
    told = scene.reload()
    assert told.status == 0, f"a reload after a want of memory: {told}"
    _answers(scene)


def nobody_reads_the_log(scene: Scene, random: Random) -> None:
    """Do not read the log for a moment, while sessions print."""
    scene.log.stalled.set()
    try:
        for _ in range(3):
            with scene.connect(timeout=5) as client, contextlib.suppress(OSError):
                client.send(b"deed print-many-lines 1\n")
        time.sleep(random.uniform(0.5, 2))  # not reading is the attack
        with scene.connect() as client:
            answer = client.ask("echo silently")
        assert answer == "silently", f"a client got {answer!r} while nobody read the log"
    finally:
        scene.log.stalled.clear()


def socket_file_vanishes(scene: Scene, random: Random) -> None:
    """Remove a listener's socket file, or put another one in its place; a reload makes it again."""
    path = scene.folder / "run" / "lonely.sock"
    path.unlink()
    if random.random() < 0.3:
        path.write_text("something else")
    scene.reload()
    if path.is_file():
        # What is somebody else's is left alone; whoever put it there takes it away.
        path.unlink()
    scene.restore()
    with Client(str(path)) as client:
        answer = client.ask("echo found again")
    assert answer == "found again", f"a client of a socket file that was made again got {answer!r}"


def busy_machine(scene: Scene, random: Random) -> None:
    """Use all of the processor for a moment, and some memory."""
    hog = "import time; end = time.monotonic() + 1.5; area = bytearray(64 << 20)\nwhile time.monotonic() < end: area[:] = bytes(len(area))"
    subprocess.run([sys.executable, "-c", hog], check=True)
    _answers(scene)


HARMLESS = (
    signal.SIGUSR1,
    signal.SIGWINCH,
    signal.SIGURG,
    signal.SIGALRM,
    signal.SIGPIPE,
    signal.SIGIO,
    signal.SIGCONT,
    signal.SIGCHLD,
    40,
)

ATTACKS = named(
    Kind.MACHINE,
    {
        "master-stops-for-a-moment": stopped("master", 0.3, 3),
        "master-stops-for-long": stopped("master", 5.5, 7),
        "mold-stops": stopped("mold", 0.5, 3),
        "exporter-stops": stopped("exporter", 0.5, 2),
        "spares-stop": stopped("spare", 0.3, 1),
        "mold-is-killed": killed("mold", times=4),
        "mold-is-terminated": killed("mold", signal.SIGTERM),
        "exporter-is-killed": killed("exporter", times=4),
        "exporter-crashes": killed("exporter", signal.SIGSEGV),
        "spares-are-killed": spares_die,
        "logger-is-killed": killed("logger", times=3),
        "trial-is-killed": trial_is_killed,
        "signals-that-mean-nothing": signals(*HARMLESS, times=300),
        "SIGHUP-storm": signals(signal.SIGHUP, times=50),
        "signals-of-all-kinds": signals(signal.SIGHUP, *HARMLESS, times=100),
        "upgrade": upgrade,
        "upgrade-among-deaths": upgrade_among_deaths,
        "reload-among-deaths": reload_among_deaths,
        "reader-of-the-log-leaves": reader_of_the_log_leaves,
        "upgrades-and-reloads": upgrades_and_reloads,
        "no-descriptors": no_descriptors,
        "no-memory": no_memory,
        "nobody-reads-the-log": nobody_reads_the_log,
        "socket-file-vanishes": socket_file_vanishes,
        "busy-machine": busy_machine,
    },
)

"""Upgrades under load: `python -m tests.soak.upgrades [--count 20] [--held 500] [--rate 200] [--reloads]`, about two seconds each.

Sessions are held and asked for a nonce before and after each upgrade; newcomers fall due at a fixed rate and each one's wait is counted
from when it was due. With `--reloads`, SIGHUPs come all the time as well: an upgrade that meets a reload waits for its end. Ends with 1
when a session was lost or crossed, a newcomer was refused, a law was broken, or the master has more descriptors than before, or a
megabyte more memory than after the first upgrade
(its private memory, /proc/PID/smaps_rollup, in the middle of the load both times).
"""

import argparse
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.procfs import open_files, private_kilobytes
from tests.support import Client, Daemon
from tests.waiting import eventually

# The default of pool.min_spare: each has a descriptor in the master.
SPARES = 4
# Kilobytes by which two looks in the middle of the load may differ.
MEMORY_MORE = 1024


@dataclass
class Newcomers:
    """What became of the clients that came meanwhile."""

    waits: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def come(self, daemon: Daemon, number: int, due: float) -> None:
        """Be one of them."""
        try:
            with daemon.connect() as client:
                if client.ask(f"echo {number}") != str(number):
                    self.wrong.append(f"newcomer {number} got another one's answer")
            self.waits.append(time.monotonic() - due)
        except OSError as error:
            self.wrong.append(f"newcomer {number}: {error}")


def keep_coming(daemon: Daemon, newcomers: Newcomers, rate: float, stop: threading.Event) -> None:
    """Have one come each 1/rate seconds, late or not."""
    with ThreadPoolExecutor(max_workers=256) as crowd:
        number, due = 0, time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            crowd.submit(newcomers.come, daemon, number, due)
            number, due = number + 1, due + 1 / rate


def keep_reloading(daemon: Daemon, stop: threading.Event) -> None:
    """Send SIGHUP twice a second."""
    while not stop.wait(0.5):
        daemon.kill(signal.SIGHUP)


def ask_all(held: list[Client], round_: int) -> list[str]:
    """Return what is wrong with the sessions that are held."""
    wrong = []
    for number, client in enumerate(held):
        nonce = f"{number}-{round_}"
        try:
            if client.ask(f"echo {nonce}") != nonce:
                wrong.append(f"session {number} was crossed")
        except OSError as error:
            wrong.append(f"session {number} was lost: {error}")
    return wrong


def upgrade_often(daemon: Daemon, held: list[Client], newcomers: Newcomers, count: int) -> list[str]:
    """Upgrade that many times, and return what went wrong."""
    wrong: list[str] = []
    memory: list[int] = []
    while len(memory) < count:
        result = daemon.cli("upgrade", "--socket", str(daemon.control))
        if result.returncode == 0:
            memory.append(private_kilobytes(daemon.pid))
            wrong += ask_all(held, len(memory))
            longest = max(newcomers.waits) * 1e3
            print(f"{len(memory):4} upgrades, {len(newcomers.waits)} newcomers, longest wait {longest:.0f} ms", flush=True)
        else:
            return [*wrong, f"upgrade refused: {result.stderr.strip()}"]
    print(f"private memory after the first upgrade {memory[0]} kB, after the last {memory[-1]} kB")
    if memory[-1] > memory[0] + MEMORY_MORE:
        wrong.append(f"the master has {memory[-1] - memory[0]} kB more than after the first upgrade")
    return wrong


def campaign(daemon: Daemon, arguments: argparse.Namespace) -> list[str]:
    """Run it, and return what went wrong."""
    held = [daemon.connect() for _ in range(arguments.held)]
    wrong = ask_all(held, 0)
    daemon.metric("poold_children", SPARES, kind="worker", state="spare")
    before = len(open_files(daemon.pid))
    stop, newcomers = threading.Event(), Newcomers()
    threads = [threading.Thread(target=keep_coming, args=(daemon, newcomers, arguments.rate, stop))]
    if arguments.reloads:
        threads.append(threading.Thread(target=keep_reloading, args=(daemon, stop)))
    for thread in threads:
        thread.start()
    wrong += upgrade_often(daemon, held, newcomers, arguments.count)
    stop.set()
    for thread in threads:
        thread.join()
    for client in held:
        client.close()
    eventually(lambda: daemon.metrics()["poold_sessions_active"] == 0, "every session has ended")
    daemon.metric("poold_children", SPARES, kind="worker", state="spare")
    eventually(lambda: len(open_files(daemon.pid)) <= before, "the descriptors of before")
    return wrong + newcomers.wrong


def main() -> int:
    """Run the campaign and print what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--held", type=int, default=500)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--reloads", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = {"log.level": "warning", "pool.max_children": arguments.held + 600}
        daemon = Daemon(Path(folder), options=options).start()
        wrong = campaign(daemon, arguments)
        wrong += daemon.close()
    print("\n".join(wrong[:20]) or "nobody lost, refused or crossed; no law broken")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

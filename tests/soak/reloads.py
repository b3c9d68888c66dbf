"""A thousand reloads under load leak nothing: `python -m tests.soak.reloads [--count 1000]`, about a fifth of a second each.

Ends with 1 when the master has more descriptors than before, or more than a kilobyte of memory for each reload, or when a client was
not served. Memory is the master's private memory (/proc/PID/smaps_rollup), after a hundred reloads have warmed it up.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.procfs import open_files, private_kilobytes
from tests.support import Daemon
from tests.waiting import eventually

WARM = 100


def load(daemon: Daemon, stop: threading.Event, outcomes: dict[str, int]) -> None:
    """Be a client after the other, and count what became of each."""
    while not stop.is_set():
        try:
            with daemon.connect() as client:
                outcome = "served" if client.ask("echo x") == "x" else "wrong"
        except OSError as error:
            outcome = f"lost: {error}"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder), options={"log.level": "warning"}).start()
        stop, outcomes = threading.Event(), dict[str, int]()
        client = threading.Thread(target=load, args=(daemon, stop, outcomes))
        client.start()
        began, figures = time.monotonic(), []
        for number in range(1, count + 1):
            done = daemon.cli("reload", "--socket", str(daemon.control))
            if done.returncode != 0:
                print(done.stderr)
                return 1
            if number % WARM == 0:
                figures.append((number, private_kilobytes(daemon.pid)))
                print(f"{number:6} reloads, {time.monotonic() - began:6.1f} s, {figures[-1][1]} kB, {outcomes}", flush=True)
        stop.set()
        client.join()
        eventually(lambda: daemon.metrics().total("poold_children", kind="worker") == 4)
        fds = len(open_files(daemon.pid))
        wrong = daemon.close()
    slope = (figures[-1][1] - figures[0][1]) / max(1, figures[-1][0] - figures[0][0])
    print(f"{slope:.3f} kB a reload, {fds} descriptors at the end, {wrong or 'no law broken'}")
    return int(slope > 1 or bool(wrong) or set(outcomes) != {"served"})


if __name__ == "__main__":
    sys.exit(main())

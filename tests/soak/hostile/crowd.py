"""The honest clients: newcomers at a fixed rate, and a few that stay. Each checks that its own nonce comes back."""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.support import Client

# How long a client waits: the master may be stopped for seconds and the machine be shared, but nobody is to be forgotten.
PATIENCE = 60.0
CLIENTS_MAX = 200
HELD = 6


@dataclass
class Crowd:
    """They come until they are told to stop. `connect(number)` makes the client of that number, whichever listener it is for."""

    connect: Callable[[int], Client]
    rate: float
    fail: Callable[[str], object]
    served: int = 0
    longest: float = 0.0
    held: list[tuple[Client, int]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Begin to come."""
        for number in range(HELD):
            client = self.connect(number)
            self.held.append((client, int(client.ask("pid"))))
        self._threads = [threading.Thread(target=act, daemon=True) for act in (self._keep_coming, self._keep_asking)]
        for thread in self._threads:
            thread.start()

    def pids(self) -> set[int]:
        """Return the workers of those that stay."""
        return {pid for _, pid in self.held}

    def _keep_coming(self) -> None:
        with ThreadPoolExecutor(max_workers=CLIENTS_MAX) as crowd:
            number, due = HELD, time.monotonic()
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                crowd.submit(self._come, number, due)
                # Who could not come in time does not come at all: the crowd stays as large as it is.
                number, due = number + 1, max(due + 1 / self.rate, time.monotonic() - 1)

    def _come(self, number: int, due: float) -> None:
        if self._stop.is_set():
            return
        nonce = f"{number}-{secrets.token_hex(8)}"
        try:
            with self.connect(number) as client:
                answer = client.ask(f"echo {nonce}")
                rest = client.finish()
        except OSError as error:
            self._lost(f"an honest session was lost: {error!r}")
            return
        if answer != nonce or rest:
            what = "ended before its answer" if not answer else f"got {answer!r} {rest[:100]!r} and not its nonce"
            self._lost(f"an honest session {what}")
            return
        with self._lock:
            self.served += 1
            self.longest = max(self.longest, time.monotonic() - due)

    def _keep_asking(self) -> None:
        while not self._stop.wait(1):
            for client, _ in self.held:
                nonce = secrets.token_hex(8)
                try:
                    answer = client.ask(f"echo {nonce}")
                except OSError as error:
                    answer = repr(error)
                if answer != nonce:
                    self._lost(f"a session that was held got {answer!r} and not its nonce")
                    return

    def _lost(self, text: str) -> None:
        if not self._stop.is_set():
            self.fail(text)

    def stop(self) -> None:
        """Let those that are inside finish, and come no more."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        held, self.held = self.held, []
        for client, _ in held:
            with contextlib.suppress(OSError):
                client.close()

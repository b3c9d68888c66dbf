"""One of the shipped units on a machine: settings and drop-ins for a test, and what systemd says about it."""

import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.laws import Metrics
from tests.support import Client, toml
from tests.systemd.machine import Machine, write
from tests.waiting import DEADLINE, eventually

SHIPPED = Path(__file__).parent.parent.parent / "deploy" / "systemd"
LISTENER = '[[listener]]\naddress = "{address}"\nname = "main"\n'
TCP = LISTENER.format(address="tcp://127.0.0.1:7777")
PASSED = LISTENER.format(address="systemd://poold")


class Unit:
    """poold.service, poold-strict.service, or poold@NAME.service, with its socket unit."""

    def __init__(self, machine: Machine, name: str) -> None:
        """Take a unit by its name without `.service`."""
        self.machine = machine
        self.name = name
        pool = name.partition("@")[2]
        self.file = f"/etc/poold/{pool or 'poold'}.toml"
        self.folder = "/run/poold" + (f"/{pool}" if pool else "/strict" if name == "poold-strict" else "")
        self._written: list[str] = []
        last = machine.run("journalctl", "--no-pager", "-n", "1", "-o", "json")
        self._cursor: str = json.loads(last)["__CURSOR"]

    def configure(self, *, listeners: str = TCP, options: Mapping[str, Any] | None = None) -> None:
        """Write the settings file; `options` are keys as `pool.max_children`."""
        tables: dict[str, dict[str, Any]] = {
            "server": {"handler": "cases:serve", "path": ["/opt/handlers"]},
            "timeouts": {"drain": 0},
            "log": {"format": "json"},
        }
        if self.name != "poold-strict":
            tables["server"]["user"] = "poold"
        for key, value in (options or {}).items():
            table, _, name = key.rpartition(".")
            tables.setdefault(table, {})[name] = value
            if value is None:
                del tables[table][name]
        text = "".join(
            f"[{table}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in keys.items()) for table, keys in tables.items()
        )
        self.write(text + listeners)

    def write(self, text: str) -> None:
        """Write this as the settings file."""
        write(self.machine.path(self.file), text)

    def drop_in(self, text: str, *, unit: str = "service") -> None:
        """Add to the unit, or to its socket unit."""
        path = f"/run/systemd/system/{self.name}.{unit}.d/test.conf"
        write(self.machine.path(path), text)
        self._written.append(path)
        self.machine.run("systemctl", "daemon-reload")

    def start(self, unit: str = "service") -> None:
        """Start the unit, or its socket unit; returns when systemd says that it is up."""
        self.machine.run("systemctl", "start", f"{self.name}.{unit}")

    def show(self, name: str, unit: str = "service") -> str:
        """Return one of systemd's properties of the unit."""
        return self.machine.run("systemctl", "show", "-P", name, f"{self.name}.{unit}").strip()

    @property
    def master(self) -> str:
        """The master's pid, in the machine."""
        return self.show("MainPID")

    def connect(self, port: int = 7777) -> Client:
        """Connect as a client on the machine."""
        with self.machine.network():
            return Client(("127.0.0.1", port))

    def metrics(self) -> Metrics:
        """Scrape."""
        with self.machine.network(), urllib.request.urlopen("http://127.0.0.1:9777/metrics", timeout=DEADLINE) as answer:
            return Metrics.parse(answer.read().decode())

    def ask(self, command: str) -> Any:
        """Return what `poold status` or `poold ps` says, as JSON."""
        return json.loads(self.machine.run("poold", command, "--json", "--socket", f"{self.folder}/control.sock"))

    def journal(self, **fields: str) -> list[dict[str, Any]]:
        """Return the unit's records since this object was made, of poold and of systemd, that have these fields."""
        self.machine.run("journalctl", "--sync")
        command = ("journalctl", "--no-pager", "-o", "json", f"--after-cursor={self._cursor}", "-u", f"{self.name}.service")
        records = [json.loads(line) for line in self.machine.run(*command).splitlines()]
        return [record for record in records if all(record.get(key) == value for key, value in fields.items())]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return poold's own events of this name."""
        records = [record for record in self.journal() if record["MESSAGE"].startswith("{")]
        return [event for record in records if (event := json.loads(record["MESSAGE"]))["event"] == name]

    def event(self, name: str) -> dict[str, Any]:
        """Wait for an event in the journal."""
        return eventually(lambda: self.events(name), f"event {name}")[0]

    def said(self, words: str) -> bool:
        """Say whether words are in the unit's journal, whoever wrote them."""
        return any(words in record["MESSAGE"] for record in self.journal())

    def close(self) -> list[str]:
        """Stop it, undo what was written, and say what should not have been."""
        run = self.machine.run
        run("systemctl", "stop", f"{self.name}.socket", f"{self.name}.service", check=False)
        wrong = [f"{name}: {event}" for name in ("loop_error", "worker_failed") for event in self.events(name)]
        if (left := self.show("ControlGroup")) and self.show("TasksCurrent") not in ("0", "[not set]"):
            wrong.append(f"processes are left in {left}")
        for path in self._written:
            self.machine.path(path).unlink()
        run("systemctl", "daemon-reload")
        run("systemctl", "reset-failed", check=False)
        return wrong

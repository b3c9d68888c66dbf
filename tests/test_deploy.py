"""What is shipped for systemd and Prometheus, tried with the real programs."""

import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.support import Poold, free_port
from tests.waiting import DEADLINE, eventually

DEPLOY = Path(__file__).parent.parent / "deploy"
UNITS = DEPLOY / "systemd"


def needs(program: str) -> pytest.MarkDecorator:
    """Skip, by name, where a program is not installed."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def run(*command: str, folder: Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, input=given, timeout=DEADLINE, check=False)


def systemd_version() -> int:
    """Return the number of the systemd that is installed."""
    return int(run("systemd-analyze", "--version", folder=DEPLOY).stdout.split()[1])


@needs("systemd-analyze")
def test_units_are_right(tmp_path: Path) -> None:
    """systemd-analyze has nothing to say about the units that are shipped, and nothing about their drop-ins if it is new enough."""
    program = tmp_path / "poold"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = sorted(UNITS.glob("*.s*"))
    assert {unit.name for unit in units} >= {"poold.service", "poold.socket", "poold-strict.service", "poold@.service"}
    for unit in units:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/poold/bin/poold", str(program)))
    if systemd_version() >= 253:
        (tmp_path / "poold.service.d").mkdir()
        shutil.copy(UNITS / "drop-ins" / "notify-reload.conf", tmp_path / "poold.service.d")
    done = run("systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in units), folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs("systemd-analyze")
@pytest.mark.parametrize(("unit", "most"), [("poold-strict.service", 1.5), ("poold.service", 2.5), ("poold@.service", 2.5)])
def test_exposure(unit: str, most: float) -> None:
    """By systemd's own reckoning the units are exposed no more than this; what they can do all the same is tried in tests/systemd."""
    command = ("systemd-analyze", "security", "--no-pager", "--offline=yes", f"--threshold={most * 10:.0f}", str(UNITS / unit))
    done = run(*command, folder=UNITS)
    assert done.returncode == 0, done.stdout.strip().rpartition("\n")[2] + done.stderr


def test_a_pool_is_poold_service_by_another_name() -> None:
    """poold@.service says what poold.service says, so that what is tried and explained there holds here; only names and folders differ."""

    def directives(name: str) -> list[str]:
        return [line for line in (UNITS / name).read_text().splitlines() if line and not line.startswith("#")]

    names = {"connection: %i": "connection", "/poold/%i.toml": "/poold/poold.toml", "poold/%i": "poold"}
    pool = directives("poold@.service")
    for of_a_pool, of_the_one in names.items():
        pool = [line.replace(of_a_pool, of_the_one) for line in pool]
    assert pool == [line for line in directives("poold.service") if line != "RuntimeDirectoryPreserve=yes"]


@needs("promtool")
def test_alerts() -> None:
    """Each alert fires when it should and not before, by Prometheus's own unit tests; the configuration is accepted."""
    folder = DEPLOY / "prometheus"
    tests = (folder / "alerts.test.yml").read_text()
    for line in (folder / "alerts.yml").read_text().splitlines():
        if line.strip().startswith("- alert:"):
            name = line.partition(":")[2].strip()
            assert f"alertname: {name}\n        exp_alerts" in tests, f"{name} has no case that fires"
    done = run("promtool", "test", "rules", "alerts.test.yml", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run("promtool", "check", "config", "prometheus.yml", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr


@needs("promtool")
def test_metrics_are_as_prometheus_wants_them(poold: Poold) -> None:
    """Promtool has nothing to say about the metrics."""
    daemon = poold().start()
    with daemon.connect() as client:
        client.ask("pid")
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.metrics_port}/metrics", timeout=DEADLINE) as answer:
        text = answer.read().decode()
    done = run("promtool", "check", "metrics", folder=daemon.folder, given=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs("prometheus")
def test_prometheus_itself(poold: Poold, tmp_path: Path) -> None:
    """A real Prometheus scrapes poold under load, and its own answers obey the laws and agree with what was done."""
    daemon = poold(options={"log.level": "warning"}).start()
    port, folder = free_port(), tmp_path / "prometheus"
    folder.mkdir()
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    config = config.replace("127.0.0.1:9777", f"127.0.0.1:{daemon.metrics_port}").replace("scrape_interval: 15s", "scrape_interval: 1s")
    (folder / "prometheus.yml").write_text(config)
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", folder)
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log:
        prometheus = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                with daemon.connect() as client:
                    client.ask("echo x")

        loaders = [threading.Thread(target=load) for _ in range(2)]
        for loader in loaders:
            loader.start()
        law = (
            "sum(poold_connections_accepted_total) - sum(poold_connections_refused_total)"
            " - sum(poold_sessions_active) - sum(poold_sessions_ended_total)"
        )
        eventually(lambda: _query(port, "count_over_time(poold_sessions_active[1m])") >= 5, "Prometheus has scraped")
        assert _query(port, f"max_over_time(abs({law})[1m:1s])") == 0
        assert _query(port, "up") == 1
        stop.set()
        for loader in loaders:
            loader.join()
        daemon.metric("poold_sessions_active", 0)
        served = daemon.metrics().total("poold_sessions_ended_total", cause="ok")
        assert served > 50
        eventually(lambda: _query(port, 'sum(poold_sessions_ended_total{cause="ok"})') == served, "Prometheus has the last count")
        assert _query(port, "poold_build_info") == 1
    finally:
        prometheus.terminate()
        prometheus.wait(DEADLINE)


def _query(port: int, expression: str) -> float:
    """Return what Prometheus answers to an instant query, -1.0 for nothing."""
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
            result = json.loads(answer.read())["data"]["result"]
    except OSError:
        # It is not there yet.
        return -1.0
    return float(result[0]["value"][1]) if result else -1.0


def test_the_installed_command() -> None:
    """The package installs a command `poold` beside its interpreter."""
    command = Path(sys.executable).parent / "poold"
    assert os.access(command, os.X_OK)
    assert run(str(command), "--version", folder=DEPLOY).stdout.startswith("poold ")

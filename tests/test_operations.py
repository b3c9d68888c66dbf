"""What operators and machines do to a daemon: ports that are taken, files that vanish, clocks that jump, signals by the thousand."""

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import needs_root
from tests.procfs import open_files
from tests.support import Client, Poold, free_port
from tests.waiting import eventually


def test_metrics_port_is_taken(poold: Poold) -> None:
    """At the start a taken metrics port ends poold with 1 and the address; at a reload the old one goes on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        daemon = poold(options={"metrics.listen": address})
        daemon.start(wait=False)
        assert daemon.wait() == 1
        assert f"metrics.listen: cannot listen on {address}" in daemon.log.read_text()
        other = poold().start()
        other.write(options={"metrics.listen": address})
        told = other.cli("reload", "--socket", str(other.control))
        assert (told.returncode, address in told.stderr) == (1, True)
        assert other.metrics()["poold_accepting"] == 1


def test_counters_start_anew_with_a_new_daemon(poold: Poold) -> None:
    """A restart resets the counters and shows a later start of the process."""
    daemon = poold().start(laws=False)
    with daemon.connect() as client:
        client.ask("pid")
    daemon.metric("poold_sessions_ended_total", 1)
    first = daemon.metrics()["process_start_time_seconds"]
    assert daemon.stop() == 0
    daemon.start(laws=False)
    eventually(lambda: daemon.metrics().total("poold_sessions_ended_total") == 0)
    assert daemon.metrics()["process_start_time_seconds"] > first


def test_socket_file_vanishes(poold: Poold, tmp_path: Path) -> None:
    """A socket file that somebody removes is noticed, and a reload makes it again; who is connected is not touched."""
    path = tmp_path / "s"
    daemon = poold(settings=f'[[listener]]\naddress = "unix://{path}"\n').start()
    with Client(str(path)) as client:
        client.ask("pid")
        path.unlink()
        assert daemon.event("socket_file_lost")["listener"] == f"unix://{path}"
        told = daemon.cli("reload", "--socket", str(daemon.control))
        assert told.returncode == 0, told.stderr
        with Client(str(path)) as other:
            assert other.ask("echo found") == "found"
        assert client.ask("echo as before") == "as before"
        assert len(daemon.events("socket_file_lost")) == 1


def test_storm_of_signals(poold: Poold) -> None:
    """Of 100,000 SIGHUPs a few reloads are made, one at a time, clients are served meanwhile, and a TERM after them is obeyed."""
    daemon = poold(options={"log.level": "info"}).start()
    storm = subprocess.Popen([sys.executable, "-c", f"import os\nfor _ in range(100_000): os.kill({daemon.master}, 1)"])
    while storm.poll() is None:
        with daemon.connect() as client:
            assert client.ask("echo calm") == "calm"
    # A storm that is over sooner than the loop turns is answered after it.
    daemon.event("reload_started")
    assert len(daemon.events("reload_started")) < 200
    assert daemon.metrics().total("poold_loop_errors_total") == 0
    assert daemon.stop() == 0


def test_wall_clock_jumps(poold: Poold) -> None:
    """A wall clock that is a year off, and one that runs a hundred times too fast, change nothing but the log's stamps."""
    library = next((str(path) for path in Path("/usr/lib").rglob("libfaketime.so.1")), None)
    if library is None:
        pytest.skip("libfaketime is not installed")
    faked = {"LD_PRELOAD": library, "FAKETIME": "-400d x100", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    daemon = poold(options={"timeouts.drain": 20}).start(environ=faked)
    with daemon.connect() as client:
        client.ask("pid")
        assert not daemon.event("ready")["time"].startswith("2026-11")
        daemon.kill(signal.SIGTERM)
        daemon.event("draining")
        assert client.ask("echo on") == "on"
        client.finish()
    assert daemon.wait() == 0
    assert not daemon.events("drain_overdue")
    assert daemon.events("session_ended", cause="ok")


@needs_root
def test_control_socket_of_another_user(poold: Poold) -> None:
    """A user that may not command the daemon is turned away by the file's mode, and by its credentials where the mode would let it in."""
    daemon = poold()
    daemon.let_others_in()
    daemon.start()
    probe = (
        "import os, socket, sys\nos.setgid(65534); os.setuid(65534)\ns = socket.socket(socket.AF_UNIX)\n"
        'try:\n    s.connect(sys.argv[1]); s.sendall(b\'{"verb": "stop"}\\n\'); print(repr(s.recv(100)))\n'
        "except OSError as error:\n    print(type(error).__name__)\n"
    )
    command = [sys.executable, "-c", probe, str(daemon.control)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "PermissionError\n"
    daemon.control.chmod(0o666)
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout in ("b''\n", "ConnectionResetError\n", "BrokenPipeError\n")
    assert daemon.event("control_refused")["uid"] == 65534
    assert daemon.ask("status")["phase"] == "running"


def test_control_socket_is_never_open_to_others(poold: Poold) -> None:
    """The control socket is a file, made without any rights and given its owner's alone; it is no abstract socket."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    # Its own listener: a passed one is for the process that strace only starts.
    daemon = poold(settings='[[listener]]\naddress = "tcp://127.0.0.1:0"\n')
    trace = daemon.folder / "trace"
    wrapper = (strace, "-f", "-o", str(trace), "-e", "trace=bind,chmod,fchmod,fchmodat,chown,fchownat,lchown,listen")
    daemon.start(wrapper=wrapper, laws=False)
    lines = [line.partition(" ")[2].strip() for line in trace.read_text().splitlines()]
    bound = next(index for index, line in enumerate(lines) if line.startswith("bind(") and str(daemon.control) in line)
    fd = lines[bound].partition("(")[2].partition(",")[0]
    assert lines[bound - 1].startswith(f"fchmod({fd}, 000)")
    # By the descriptor of the file, and only then does it listen.
    assert lines[bound + 1].startswith('chmod("/proc/self/fd/')
    assert ", 0600)" in lines[bound + 1]
    assert lines[bound + 2].startswith(f"listen({fd}, ")
    names = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()[1:] if "@" in line]
    assert not [name for name in names if "poold" in name and not name.startswith("@poold-test-ports-")]
    assert daemon.stop() == 0


def test_reload_while_descriptors_are_few(poold: Poold) -> None:
    """A reload to settings that need more descriptors than the hard limit allows is refused with the sum."""
    daemon = poold().start(prelude="import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))")
    before = len(open_files(daemon.master))
    daemon.write(options={"pool.max_children": 5000, "pool.max_spare": 2000})
    told = daemon.cli("reload", "--socket", str(daemon.control))
    assert told.returncode == 1
    assert "the hard limit is 1024" in told.stderr
    eventually(lambda: len(open_files(daemon.master)) == before)
    with daemon.connect() as client:
        assert client.ask("echo untouched") == "untouched"


def test_two_listeners_that_cannot_be_had(poold: Poold) -> None:
    """When one of two new listeners cannot be bound, the other is not kept either."""
    port = free_port()
    daemon = poold().start()
    both = "".join(
        f'[[listener]]\naddress = "{address}"\n' for address in ("systemd://main", f"tcp://127.0.0.1:{port}", "tcp://192.0.2.77:99")
    )
    daemon.write(settings=both, options={})
    told = daemon.cli("reload", "--socket", str(daemon.control))
    assert told.returncode == 1
    assert "192.0.2.77" in told.stderr
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0

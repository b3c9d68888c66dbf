"""What tests rely on: no test is given what belongs to another, whoever else runs tests on this machine."""

import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

from tests.support import PORTS_EACH, Ports, free_port

ROOT = Path(__file__).parent.parent


def test_ports_of_processes_are_disjoint() -> None:
    """Processes that ask for ports at the same time are given different ones, none of which the kernel may give to anybody."""
    program = (
        f"from tests.support import free_port; import sys; print(*[free_port() for _ in range({PORTS_EACH})]); sys.stdout.flush(); input()"
    )
    command = [sys.executable, "-c", program]
    with ExitStack() as stack:
        started = [
            stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(4)
        ]
        given = [set(map(int, each.stdout.readline().split())) for each in started if each.stdout is not None]
        given.append({free_port() for _ in range(PORTS_EACH)})
        for each in started:
            each.communicate("\n")
    lowest, highest = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert sum(map(len, given)) == len(set().union(*given))
    assert not any(lowest <= port <= highest for port in set().union(*given))


def test_port_that_is_in_use_is_not_given() -> None:
    """A port that somebody listens on is left out, and is given again when it is free."""
    with closing(Ports()) as ports:
        taken = ports.free()
        with socket.create_server(("127.0.0.1", taken)):
            assert taken not in {ports.free() for _ in range(PORTS_EACH)}
        assert taken in {ports.free() for _ in range(PORTS_EACH)}

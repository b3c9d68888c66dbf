"""What a handler does to its own interpreter, or its import to its own process, changes nothing of what poold says and keeps."""

import json

import pytest

from tests.childkit import mold_of, spares_of
from tests.faultkit import execute, murder, orphaned
from tests.procfs import signal_masks
from tests.support import Poold
from tests.waiting import eventually

ATTACKER = {"server.handler": "attacker:serve", "pool.min_spare": 1, "pool.max_spare": 1}


STREAM = "import sys\nclass Stream:\n    def flush(self): raise {}\nsys.stdout = sys.stderr = Stream()"
NUMBER = (
    "class Number(int):\n    def __and__(self, other): raise KeyError\n    def __bool__(self): return False\nraise SystemExit(Number({}))"
)
ENDS = {
    "no streams": ("import sys; sys.stdout = sys.stderr = None", "ok", 0),
    "no streams, and an error": ("import sys; sys.stdout = sys.stderr = None; raise KeyboardInterrupt", "exit", 1),
    "a stream that raises": (STREAM.format("ValueError"), "ok", 0),
    "a stream that leaves": (STREAM.format("SystemExit(5)"), "ok", 0),
    "a code of 256": ("raise SystemExit(256)", "exit", 1),
    "a code of 2 to the 70th": ("raise SystemExit(1 << 70)", "exit", 1),
    "a code below zero": ("raise SystemExit(-1)", "exit", 255),
    "a code that is true": ("raise SystemExit(True)", "exit", 1),
    "a code that is false": ("raise SystemExit(False)", "ok", 0),
    "a text": ("raise SystemExit('no')", "exit", 1),
    "a number with methods of its own": (NUMBER.format(3), "exit", 3),
    "a zero with methods of its own": (NUMBER.format(0), "ok", 0),
    "no number at all": (
        "class Fake:\n    __class__ = int\n    def __str__(self): raise SystemExit(0)\nraise SystemExit(Fake())",
        "exit",
        1,
    ),
    "an error that cannot be shown": ("class Odd(BaseException):\n    def __str__(self): raise SystemExit\nraise Odd", "exit", 1),
    "no way to leave": ("os._exit = lambda code: None", "ok", 0),
    "nothing built in": ("import builtins\nfor name in ('print', 'isinstance', 'type'): delattr(builtins, name)", "exit", 70),
    "a connection that cannot be closed": ("c.socket = None; raise KeyboardInterrupt", "exit", 1),
}


@pytest.mark.parametrize("trick", ENDS)
def test_end_of_a_session(poold: Poold, trick: str) -> None:
    """Whatever a handler has put in the place of what poold uses, its session ends as what it is, with the status that says so."""
    code, cause, status = ENDS[trick]
    daemon = poold(options=ATTACKER).start()
    with daemon.connect() as client:
        execute(client, code)
        client.finish()
    daemon.metric("poold_sessions_ended_total", 1, cause=cause)
    assert daemon.event("session_ended")["status"] == status
    assert not daemon.events("worker_failed")


def test_a_way_out_that_only_raises(poold: Poold) -> None:
    """A handler that has replaced what ends its process by a function that raises does not keep the process for ever."""
    daemon = poold(options=ATTACKER).start()
    with daemon.connect() as client:
        execute(client, "def stay(code): raise KeyError\nc._worker.exit_process = stay")
        client.finish()
    daemon.metric("poold_sessions_ended_total", 1, cause="signal")
    assert daemon.event("session_ended")["status"] == -9


def test_signal_handlers_that_raise_at_any_moment(poold: Poold) -> None:
    """A session whose signal handler raises ten thousand times a second ends all the same, and its process never does a mold's work."""
    daemon = poold(options=ATTACKER).start()
    code = (
        "import signal\ndef disturb(*_): raise KeyError\n"
        "signal.signal(signal.SIGALRM, disturb); signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)\nc.socket.close()"
    )
    for _ in range(10):
        with daemon.connect() as client:
            execute(client, code)
            client.rest()
    eventually(lambda: daemon.metrics().total("poold_sessions_ended_total") == 10, "ten ends")
    daemon.metric("poold_children", 1, kind="worker", state="spare")
    assert not daemon.events("protocol_error")


@pytest.mark.parametrize("preload", [True, False])
def test_what_an_import_changes_of_its_process(poold: Poold, preload: bool) -> None:
    """Signals that the import has blocked, and the signal of the master's death that it has cleared, are set right again."""
    daemon = poold(options={**ATTACKER, "server.handler": "loosened:serve", "pool.preload": preload}).start(laws=False)
    [spare] = spares_of(daemon, 1)
    for pid in (spare, *([mold_of(daemon)] if preload else [])):
        assert signal_masks(pid)["SigBlk"] == 0
    with daemon.connect() as client:
        execute(client, "say(1)")
        assert json.loads(client.line()) == [1]
        spares_of(daemon, 1)
        with orphaned(daemon):
            murder(daemon)
        assert client.rest() == b""


def test_what_a_session_forked_cannot_speak_for_its_worker(poold: Poold) -> None:
    """A process that a session has left behind with the channel is refused at its first word, and costs that worker and nobody else."""
    options = {**ATTACKER, "pool.connections_per_child": 0, "pool.max_children": 4, "pool.min_spare": 2, "pool.max_spare": 2}
    daemon = poold(options=options).start()
    flood = """
import socket, struct
ends = [n for n in map(int, os.listdir('/proc/self/fd')) if n > 2 and n != c.socket.fileno() and not tried(os.fstat, n)]
ends = [n for n in ends if os.readlink(f'/proc/self/fd/{n}').startswith('socket:')]
gone, leaving = os.pipe()
told, telling = os.pipe()
for _ in range(4):
    if not os.fork():
        os.setsid()
        # The first word ends whoever is still in the group of the worker.
        os.write(leaving, b'.')
        os.read(told, 1)
        end = socket.socket(fileno=ends[0])
        while True:
            try: end.send(struct.pack('<BxxxiQ', 5, 0, c.id))
            except OSError: os._exit(0)
for _ in range(4): os.read(gone, 1)
os.write(telling, b'....')
"""
    with daemon.connect() as client:
        execute(client, flood)
        daemon.event("protocol_error")
        daemon.metric("poold_sessions_ended_total", 1, cause="lost")
    # They end because their channel has.
    daemon.metric("poold_unknown_children_reaped_total", 4)
    with daemon.connect() as client:
        execute(client, "say(1)")
        assert json.loads(client.line()) == [1]

"""Handlers whose import does its worst. Either the reload is refused and the generation before goes on serving, or the new one serves."""

import contextlib
import time
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.soak.hostile.attack import Act, Kind, named
from tests.soak.hostile.scene import Scene

HEAD = """
import ctypes, os, random, resource, signal, socket, sys, threading, time
from hostile import SilentError, MutableError, called_leftover, descriptors, forked, nap, orphaned, serve, trying
"""


@dataclass(frozen=True, slots=True)
class Spoilt:
    """What an import does, and what a reload to it must be: "refused", "applied", or "" for either."""

    code: str
    outcome: str = ""
    changes: dict[str, Any] | None = None


# Not among them: an import that takes from its own generation what births need (RLIMIT_NPROC, say). It is the operator's, and may.
IMPORTS = {
    "import-forks-and-both-come-back": Spoilt("os.fork()", "refused"),
    "import-leaves-a-child": Spoilt("forked(lambda: nap(2))", "refused"),
    "import-leaves-an-orphan": Spoilt("orphaned(lambda: nap(3))"),
    "import-starts-threads": Spoilt(
        "for _ in range(4): threading.Thread(target=lambda: [time.sleep(0.01) for _ in iter(int, 1)], daemon=True).start()", "applied"
    ),
    "import-changes-signals": Spoilt(
        "for number in signal.valid_signals(): trying(signal.signal, number, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())"
    ),
    "import-catches-signals": Spoilt("for number in signal.valid_signals(): trying(signal.signal, number, lambda *_: 1 / 0)"),
    "import-sets-a-timer": Spoilt("signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.7, 0.7)"),
    "import-sets-wakeup": Spoilt(
        "a, b = socket.socketpair(); a.setblocking(False); b.setblocking(False); signal.set_wakeup_fd(a.fileno())", "applied"
    ),
    "import-outlives-its-master": Spoilt("ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)"),
    "import-is-traced": Spoilt("ctypes.CDLL(None).ptrace(0, 0, None, None)"),
    "import-is-traced-and-stops": Spoilt(
        "ctypes.CDLL(None).ptrace(0, 0, None, None); os.kill(os.getpid(), random.Random({seed}).choice([28, 17, 19]))"
    ),
    "import-leads-nothing": Spoilt(
        "trying(os.setsid); trying(os.setpgid, 0, os.getppid()); ctypes.CDLL(None).prctl(15, b'poold', 0, 0, 0)"
    ),
    "import-raises": Spoilt(
        "raise random.Random({seed}).choice([SystemExit(0), SystemExit('a text'), SilentError(), MutableError(), KeyboardInterrupt(), "
        "GeneratorExit(), StopIteration(), ValueError('x' * 10**6), ValueError('\\x1b]0;owned\\x07\\r\\n\\0\\ud800' * 1000), "
        "ImportError('no', name='\\x1b[2J', path='\\n'), RecursionError(), MemoryError(), BaseExceptionGroup('g', [KeyboardInterrupt()])])",
        "refused",
    ),
    "import-is-no-python": Spoilt("def serve(:\n\0", "refused"),
    "import-has-no-handler": Spoilt("del serve", "refused"),
    "import-has-an-odd-handler": Spoilt("serve = random.Random({seed}).choice([None, 5, 'serve', b'x', [], SilentError()])", "refused"),
    "import-exits": Spoilt("sys.exit(0)", "refused"),
    "import-leaves-at-once": Spoilt("os._exit(random.Random({seed}).choice([0, 1, 77, 255]))", "refused"),
    "import-kills-itself": Spoilt("os.kill(os.getpid(), random.Random({seed}).choice([9, 6, 11, 15, 31, 40, 1]))", "refused"),
    "import-stops-itself": Spoilt("os.kill(os.getpid(), signal.SIGSTOP)", "refused", {"timeouts__import": 2}),
    "import-crashes": Spoilt("ctypes.string_at(0)", "refused"),
    "import-takes-its-time": Spoilt("time.sleep(2)", "applied"),
    "import-hangs": Spoilt("while True: time.sleep(1)", "refused", {"timeouts__import": 2}),
    "import-hangs-deaf": Spoilt("signal.signal(15, signal.SIG_IGN)\nwhile True: trying(time.sleep, 1)", "refused", {"timeouts__import": 2}),
    "import-prints-much": Spoilt("print('x' * (1 << 20)); sys.stderr.write('y' * (1 << 20) + chr(10))"),
    "import-forges-lines": Spoilt('os.write(2, b\'{{"event": "forged", "level": "error"}}\\n\' * 3)'),
    "import-closes-everything": Spoilt("os.closerange(3, 4096)", "refused"),
    "import-closes-its-streams": Spoilt("os.closerange(0, 3)"),
    "import-puts-others-in-their-place": Spoilt(
        "zero = os.open('/dev/zero', 2)\nfor fd in descriptors(): fd > 2 and trying(os.dup2, zero, fd)"
    ),
    "import-writes-everywhere": Spoilt("for fd in descriptors(): trying(os.write, fd, random.Random({seed}).randbytes(100))"),
    "import-floods-its-channel": Spoilt(
        "for fd in descriptors():\n"
        "    if fd > 2:\n"
        "        os.set_blocking(fd, False)\n"
        "        for n in range(5000): trying(os.write, fd, bytes([n % 6]) + bytes(39))\n"
        "        trying(os.set_blocking, fd, True)"
    ),
    "import-truncates-everything": Spoilt("for fd in descriptors(): fd > 2 and trying(os.ftruncate, fd, 0)"),
    "import-duplicates-everything": Spoilt("KEEP = [trying(os.dup, fd) for fd in descriptors()]"),
    "import-hooks-forks": Spoilt(
        "def burst(): raise RuntimeError('fork')\nos.register_at_fork(before=burst, after_in_parent=burst, after_in_child=burst)"
    ),
    "import-replaces-functions": Spoilt("os.fork = lambda: 0\nos.dup2 = os.pipe = os.setsid = lambda *_, **__: 1 / 0"),
    "import-empties-modules": Spoilt(
        "for name in [name for name in sys.modules if name.startswith('poold.')]: "
        "sys.modules[name] = random.Random({seed}).choice([None, object(), sys])"
    ),
    "import-hides-the-library": Spoilt("sys.path.clear(); sys.meta_path.clear(); sys.path_importer_cache.clear()"),
    "import-spoils-streams": Spoilt("sys.stdout = sys.stderr = None"),
    "import-traces": Spoilt("sys.settrace(lambda *_: None); sys.setprofile(lambda *_: None)"),
    "import-raises-in-threads": Spoilt(
        "threading.excepthook = sys.excepthook = lambda *_: os._exit(5)\nthreading.Thread(target=lambda: 1 / 0).start()"
    ),
    "import-lowers-a-limit": Spoilt(
        "what = random.Random({seed}).choice(['RLIMIT_FSIZE', 'RLIMIT_STACK', 'RLIMIT_MEMLOCK', 'RLIMIT_CORE'])\n"
        "resource.setrlimit(getattr(resource, what), (1 << 20, 1 << 20) if what == 'RLIMIT_STACK' else (0, 0))"
    ),
    "import-lowers-open-files": Spoilt("resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))"),
    "import-is-large": Spoilt("KEEP = [bytearray(4096) for _ in range(10000)]; KEPT = [[n] for n in range(300000)]", "applied"),
    "import-changes-place": Spoilt("os.chdir('/proc/self'); os.umask(0o777); os.environ.clear()"),
    "import-raises-at-exit": Spoilt("import atexit; atexit.register(lambda: os._exit(9)); atexit.register(lambda: 1 / 0)"),
}


def _stands(scene: Scene, name: str) -> None:
    """See that what the import has done neither ends the mold later on nor stays with its workers."""
    mold = scene.mold()
    wrong = scene.broken_rights(opened=True)
    assert not wrong, f"after {name}: {wrong}"
    time.sleep(1)  # what is to come may take its time
    assert scene.mold() == mold, f"after {name} the mold has not lived for a second"


def spoilt(name: str, spoilt: Spoilt) -> Act:
    """Return the attack: a reload to that handler, a look whether newcomers are served, and a reload back."""

    def act(scene: Scene, random: Random) -> None:
        seed = random.randrange(1 << 30)
        module = scene.handler(
            f"spoilt_{seed}", HEAD + spoilt.code.replace("{seed}", str(seed)).replace("{{", "{").replace("}}", "}") + "\n"
        )
        scene.write(server__handler=f"{module}:serve", **(spoilt.changes or {}))
        scene.opened = True
        try:
            told = scene.reload()
            outcome = {0: "applied", 1: "refused"}.get(told.status, told.text)
            assert outcome in ("applied", "refused"), f"a reload to a handler whose {name} was {outcome}"
            assert spoilt.outcome in ("", outcome), f"a reload to a handler whose {name} was {outcome}: {told.text[:500]}"
            if told.status == 0:
                _stands(scene, name)
            for _ in range(5):
                with scene.connect(random.randrange(4)) as client:
                    answer = client.ask("echo after the import")
                assert answer == "after the import", f"after {name}, {outcome}: a client got {answer!r}"
        finally:
            with contextlib.suppress(FileNotFoundError):
                (scene.folder / "handlers" / f"{module}.py").unlink()
            scene.restore()
            scene.opened = False

    return act


ATTACKS = named(Kind.IMPORT, {name: spoilt(name, each) for name, each in IMPORTS.items()})

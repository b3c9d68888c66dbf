"""Pages that workers have before they need them: by their clone, by themselves while they wait, or one by one where neither is allowed."""

import os
import signal

import pytest

from poold.mold import prefault
from tests.childkit import mold_of, spares_of
from tests.faultkit import traced
from tests.needs import needs_rings, needs_strace
from tests.procfs import children_of, has_gone, kilobytes, open_files, smaps_rollup, stat_fields, status_fields
from tests.support import HANDLERS, Daemon, Poold

SESSIONS = 10
# Of a mold's, at each clone: a dozen with pages that are pinned, fifty without.
FAULTS_MAX = 30


def faults(pid: int) -> int:
    """Return how many pages a process was given by faults so far."""
    fields = stat_fields(pid)
    assert fields is not None
    return int(fields[7])


def pinned(pid: int) -> int:
    """Return how many kilobytes of a process's memory are pinned (proc(5), VmPin)."""
    return int(status_fields(pid)["VmPin"].split()[0])


def has_no_ring(pid: int) -> bool:
    """Say whether no descriptor of a process is an io_uring's."""
    return not [name for name in open_files(pid).values() if "io_uring" in name]


def one_spare(poold: Poold, folder_for_others: bool = False, **options: object) -> Daemon:
    """Return a poold with one spare at a time, whose handler says how many faults it has had."""
    daemon = poold(options={"server.handler": "pages:serve", "pool.min_spare": 1, "pool.max_spare": 1, **options})
    if folder_for_others:
        daemon.let_others_in()
    return daemon


def faults_of_a_clone(daemon: Daemon) -> float:
    """Serve some clients, and return how many faults each clone costs the mold."""
    mold = mold_of(daemon)
    spares_of(daemon, 1)
    before = faults(mold)
    for _ in range(SESSIONS):
        [spare] = spares_of(daemon, 1)
        with daemon.connect() as client:
            assert int(client.line()) > 0
        has_gone(spare)
    spares_of(daemon, 1)
    return (faults(mold) - before) / SESSIONS


@needs_rings
@pytest.mark.parametrize("user", [None, "nobody"])
def test_what_is_pinned_costs_no_faults(poold: Poold, user: str | None) -> None:
    """A clone copies what mold and worker write to, also as another user; no descriptor of it is open in either."""
    if user is not None and os.geteuid() != 0:
        pytest.skip("only root can change the user")
    daemon = one_spare(poold, folder_for_others=True, **({"server.user": user} if user else {})).start()
    assert faults_of_a_clone(daemon) < FAULTS_MAX
    assert pinned(mold_of(daemon)) > 0
    assert has_no_ring(mold_of(daemon))
    assert has_no_ring(spares_of(daemon, 1)[0])
    assert not children_of(mold_of(daemon))


@needs_rings
@needs_strace
@pytest.mark.parametrize(
    ("fault", "held"),
    [
        ("io_uring_setup:error=EPERM", False),
        ("io_uring_setup:error=ENOSYS", False),
        ("io_uring_register:error=ENOMEM", False),
        # A mold's first is to make the ring last, its second to pin.
        ("io_uring_register:error=EINVAL:when=1", False),
        ("io_uring_register:error=EOPNOTSUPP:when=2", True),
        ("io_uring_setup:signal=SYS", False),
        ("process_madvise:signal=SYS", False),
        ("process_madvise:error=EPERM", True),
        # A mold's first is its observer, its second the scout.
        ("clone:error=EAGAIN:when=1", False),
        ("clone:error=EAGAIN:when=2", False),
    ],
)
def test_what_is_forbidden_costs_faults_and_nothing_else(poold: Poold, fault: str, held: bool) -> None:
    """A system that has none of this, limits it or kills for it, is served by all the same."""
    daemon = one_spare(poold).start()
    mold, [spare] = mold_of(daemon), spares_of(daemon, 1)
    with traced(daemon.folder, daemon.pid, f"inject={fault}", follow=True) as tracer:
        daemon.kill(signal.SIGHUP)
        has_gone(mold)
        has_gone(spare)
        spares_of(daemon, 1)
        assert tracer.lines("INJECTED") or tracer.lines("SIGSYS")
    assert (pinned(mold_of(daemon)) > 0) is held
    assert (faults_of_a_clone(daemon) < FAULTS_MAX) is held
    assert has_no_ring(mold_of(daemon))
    assert not children_of(mold_of(daemon))


@needs_rings
def test_more_than_may_be_locked_is_not_pinned(poold: Poold) -> None:
    """RLIMIT_MEMLOCK is not for root, and not an error."""
    if os.geteuid() != 0:
        pytest.skip("only root can change the user")
    daemon = one_spare(poold, folder_for_others=True, **{"server.user": "nobody"})
    daemon.start(wrapper=("prlimit", "--memlock=65536:65536"))
    assert pinned(mold_of(daemon)) == 0
    assert faults_of_a_clone(daemon) > FAULTS_MAX


@pytest.mark.parametrize("user", [None, "nobody"])
def test_a_spare_has_its_pages_before_its_client_comes(poold: Poold, user: str | None) -> None:
    """What a worker uses on its way to the handler it has while it is a spare, also as another user, and nobody may trace its mold."""
    if not prefault.populates():
        pytest.skip("this kernel gives no process its pages at one go (Linux 6.14)")
    if user is not None and os.geteuid() != 0:
        pytest.skip("only root can change the user")
    daemon = one_spare(poold, folder_for_others=True, **({"server.user": user} if user else {})).start()
    [spare] = spares_of(daemon, 1)
    before = faults(spare)
    with daemon.connect() as client:
        taken = int(client.line()) - before
    # One by one it would be more than 80.
    assert taken < 50
    assert user is None or os.stat(f"/proc/{mold_of(daemon)}/maps").st_uid == 0


@needs_rings
def test_huge_pages_are_not_pinned(poold: Poold) -> None:
    """A clone does not copy two megabytes for the one page of them that it would write to."""
    daemon = one_spare(poold)
    (daemon.folder / "large.py").write_text("DATA = [str(i) for i in range(1_000_000)]\nfrom pages import serve\n")
    daemon.write(options={"server.handler": "large:serve", "server.path": [str(daemon.folder), str(HANDLERS)], "pool.min_spare": 1})
    daemon.start()
    spare = spares_of(daemon, 1)[0]
    assert kilobytes(smaps_rollup(spare), "Private_Dirty") < 4096
    # What began as a file's is small.
    assert 0 < pinned(mold_of(daemon)) < 1024

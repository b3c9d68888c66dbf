"""The wire between master and children, with whatever a child may send on it."""

import array
import contextlib
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poold import channel
from poold.channel import MoldReport, MoldWord, Report, WorkerWord
from poold.errors import ProtocolError


@contextlib.contextmanager
def ends() -> Iterator[tuple[channel.Wire, channel.Wire]]:
    """Make a channel, and close both ends."""
    ours, theirs = channel.make_pair()
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


# Anything, and what is nearly right.
WORKERS = st.binary(max_size=100) | st.builds(
    lambda word, number, session, rest: bytes([word, 0, 0, 0]) + number + session + rest,
    st.integers(0, 9),
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=8, max_size=8),
    st.binary(max_size=60),
)
MOLDS = st.binary(max_size=100) | st.builds(
    lambda word, head, rest: bytes([word]) + head + rest, st.integers(0, 6), st.binary(min_size=19, max_size=19), st.binary(max_size=9000)
)


@given(WORKERS)
def test_any_message_of_a_worker(message: bytes) -> None:
    """Whatever a worker sends is a report of a known word by the process that sent it, or breaks the protocol; nothing is left over."""
    with ends() as (ours, theirs):
        theirs.send(message)
        try:
            report = channel.receive_report(ours)
        except ProtocolError:
            report = None
        else:
            assert isinstance(report, Report)
            assert report.word in set(WorkerWord)
            assert report.pid == os.getpid()
            assert 0 <= report.session < 1 << 64
            assert len(report.version) <= channel.REPORT_MAX
        with pytest.raises(BlockingIOError):
            channel.receive_report(ours)
        theirs.close()
        assert channel.receive_report(ours) is None


@given(MOLDS)
def test_any_message_of_a_mold(message: bytes) -> None:
    """Whatever a mold sends is a report of a known word, or breaks the protocol; of a message of no bytes nobody can say that it came."""
    with ends() as (ours, theirs):
        theirs.send(message)
        try:
            report = channel.receive_mold_report(ours)
        except ProtocolError:
            return
        assert report is None or isinstance(report, MoldReport)
        if report is not None:
            assert report.word in set(MoldWord)
            assert len(report.text) <= channel.MOLD_TEXT_MAX
            slot, incarnation, pid, number = report.answer
            assert min(slot, incarnation, pid, number) >= 0
            assert not (pid and number)


@given(st.binary(min_size=1, max_size=200), st.integers(1, 8))
def test_descriptors_that_a_worker_sends_go_nowhere(message: bytes, count: int) -> None:
    """The master takes no descriptor from a worker: what comes with a message is closed by the kernel."""
    with ends() as (ours, theirs), open(os.devnull) as null:
        rights = array.array("i", [null.fileno()] * count).tobytes()
        before = len(os.listdir("/proc/self/fd"))
        theirs.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        with contextlib.suppress(ProtocolError):
            channel.receive_report(ours)
        assert len(os.listdir("/proc/self/fd")) == before
        theirs.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        with contextlib.suppress(ProtocolError):
            channel.receive_mold_report(ours)
        assert len(os.listdir("/proc/self/fd")) == before


@given(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([socket.AF_INET, socket.AF_INET6, socket.AF_UNIX]),
    st.text(max_size=40),
    st.integers(0, 65535),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 32) - 1),
    st.text(max_size=40),
)
def test_assignments_arrive_as_they_were_sent(  # noqa: PLR0917 -- hypothesis gives them in their order
    session: int, family: int, host: str, port: int, flow: int, scope: int, listener: str
) -> None:
    """What the master packs a worker unpacks."""
    sent = channel.Assignment(session=session, family=family, host=host, port=port, flow=flow, scope=scope, listener=listener)
    assert channel.read_assignment(sent.pack()) == (session, family, host, port, flow, scope, listener)


def test_descriptor_passes_close_on_exec() -> None:
    """A descriptor that came through a channel is not inherited by programs, and EOF is told from a message without one."""
    with ends() as (ours, theirs), open(os.devnull) as null:
        channel.send_with_descriptor(ours, b"take this", null.fileno())
        channel.send_order(ours, b"and these", null.fileno(), null.fileno())
        for message, count in ((b"take this", 1), (b"and these", 2)):
            data, fds = channel.receive_with_descriptors(theirs, 100)
            assert (data, len(fds)) == (message, count)
            for fd in fds:
                assert not os.get_inheritable(fd)
                os.close(fd)
        ours.close()
        assert channel.receive_with_descriptors(theirs, 100) == (b"", ())

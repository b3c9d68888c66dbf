"""Works off the master's orders: the mold clones one worker for each."""

from __future__ import annotations

from errno import EAGAIN, EMFILE
from os import close

from poold.channel import ANSWER_HEAD, ORDER_RESULT, ORDER_SIZE, receive_with_descriptors
from poold.plain import MSG_NOSIGNAL
from poold.worker.main import run_worker

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from collections.abc import Callable

    from poold.channel import Wire
    from poold.worker.main import Worker

_pack_result = ORDER_RESULT.pack


def work_off(wire: Wire, clone_worker: Callable[[], int], worker: Worker) -> None:  # noqa: C901 -- for the reason below
    """Clone a worker for each order until the channel ends. A clone runs `worker` and ends there.

    All of this is one short function: the kernel copies each page that the mold writes to again
    after each clone.
    """
    while True:
        order, fds = receive_with_descriptors(wire, ORDER_SIZE)
        if not order:
            return
        if len(fds) != worker.descriptors_per_order:
            # The kernel drops descriptors where the process is at its limit of open files.
            result = -EMFILE
        else:
            try:
                result = clone_worker()
            except OSError as error:
                result = -(error.errno or EAGAIN)
            if not result:
                run_worker(worker, order, *fds)
        if result:
            for fd in fds:
                close(fd)
        try:
            wire.send(ANSWER_HEAD + order + _pack_result(result), MSG_NOSIGNAL)
        except BrokenPipeError:
            # The master has closed the channel or is dead.
            return

"""The mold's work: a worker for each order."""

from __future__ import annotations

from errno import EAGAIN, EMFILE
from os import close
from socket import MSG_NOSIGNAL

from poold.channel import ANSWER_HEAD, MADE, ORDER_SIZE, receive_with
from poold.worker.main import live

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Callable

    from poold.channel import Wire
    from poold.worker.main import Worker

_MSG_NOSIGNAL = int(MSG_NOSIGNAL)
pack = MADE.pack


def work_off(end: Wire, clone_worker: Callable[[], int], worker: Worker) -> None:  # noqa: C901 -- for the reason below
    """Clone a worker for each order until the channel ends. A clone is `worker` from then on, and does not come back.

    One function with little in it: every page that it writes to is copied again after each clone.
    """
    while True:
        order, fds = receive_with(end, ORDER_SIZE)
        if not order:
            return
        if len(fds) != worker.given:
            # What made the kernel drop descriptors.
            made = -EMFILE
        else:
            try:
                made = clone_worker()
            except OSError as error:
                made = -(error.errno or EAGAIN)
            if not made:
                live(worker, order, *fds)
        if made:
            for fd in fds:
                close(fd)
        try:
            end.send(ANSWER_HEAD + order + pack(made), _MSG_NOSIGNAL)
        except BrokenPipeError:
            # The master has let go of this mold, or is gone.
            return

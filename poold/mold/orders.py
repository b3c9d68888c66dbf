"""The mold's work: a worker for each order."""

from __future__ import annotations

from errno import EAGAIN, EMFILE
from os import close
from socket import MSG_NOSIGNAL

from poold.channel import answers, receive_orders
from poold.worker.main import live

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Callable

    from poold.channel import Wire
    from poold.worker.main import Worker

_MSG_NOSIGNAL = int(MSG_NOSIGNAL)


def work_off(end: Wire, clone_worker: Callable[[], int], worker: Worker) -> None:
    """Clone a worker for each order until the channel ends. A clone is `worker` from then on, and does not come back.

    One function with little in it: every page that it writes to is copied again after each clone.
    """
    while True:
        orders, fds = receive_orders(end)
        if not orders:
            return
        made: list[int] = []
        for fd in fds:
            try:
                pid = clone_worker()
            except OSError as error:
                pid = -(error.errno or EAGAIN)
            if pid:
                close(fd)
            else:
                live(worker, orders[len(made)][0], fd, fds[len(made) + 1 :])
            made.append(pid)
        # What made the kernel drop the last descriptors.
        made += [-EMFILE] * (len(orders) - len(fds))
        try:
            end.send(answers(orders, made), _MSG_NOSIGNAL)
        except BrokenPipeError:
            # The master has let go of this mold, or is gone.
            return

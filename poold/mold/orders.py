"""The mold's work: a worker for each order."""

from __future__ import annotations

from errno import EAGAIN, EMFILE
from os import close
from socket import MSG_NOSIGNAL
from sys import byteorder

from poold.channel import ANSWER_HEAD, FD_SIZE, MADE, ORDER_SIZE, receive_orders
from poold.worker.main import live

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Callable

    from poold.channel import Wire
    from poold.worker.main import Worker

_MSG_NOSIGNAL = int(MSG_NOSIGNAL)
pack, from_bytes = MADE.pack, int.from_bytes


def work_off(end: Wire, clone_worker: Callable[[], int], worker: Worker) -> None:
    """Clone a worker for each order until the channel ends. A clone is `worker` from then on, and does not come back.

    One function with little in it: every page that it writes to is copied again after each clone.
    """
    while True:
        orders, fds = receive_orders(end)
        if not orders:
            return
        made = b""
        for at in range(0, len(fds), FD_SIZE):
            fd = from_bytes(fds[at : at + FD_SIZE], byteorder)
            try:
                pid = clone_worker()
            except OSError as error:
                pid = -(error.errno or EAGAIN)
            if pid:
                close(fd)
            else:
                live(worker, orders, fds, at)
            made += pack(pid)
        # What made the kernel drop the last descriptors.
        made += pack(-EMFILE) * (len(orders) // ORDER_SIZE - len(fds) // FD_SIZE)
        try:
            end.send(ANSWER_HEAD + orders + made, _MSG_NOSIGNAL)
        except BrokenPipeError:
            # The master has let go of this mold, or is gone.
            return

"""Members of enumerations that a session uses, copied as plain integers.

To look up a member, and to convert the member to an integer, Python goes through several objects
and changes their reference counts. In a worker these objects lie on pages of memory that the worker
shares with the mold. The kernel copies each such page at the first write. A plain integer among a
module's own names needs none of these objects. The master's accept uses the copies as well, because
the look-up takes time.

`poold.channel` defines two of these enumerations and cannot import this module. The channel takes
the kernel's numbers from the compiled module `_socket`, where they are plain integers already.
"""

import signal
import socket

from poold.channel import Outcome, WorkerWord

SIGPIPE, SIGTERM, SIGKILL = int(signal.SIGPIPE), int(signal.SIGTERM), int(signal.SIGKILL)
AF_UNIX, AF_INET = int(socket.AF_UNIX), int(socket.AF_INET)
SOCK_STREAM, SOCK_SEQPACKET = int(socket.SOCK_STREAM), int(socket.SOCK_SEQPACKET)
MSG_NOSIGNAL = int(socket.MSG_NOSIGNAL)
ACK, NACK, DONE = int(WorkerWord.ACK), int(WorkerWord.NACK), int(WorkerWord.DONE)
OK, EXIT, CLIENT_GONE = int(Outcome.OK), int(Outcome.EXIT), int(Outcome.CLIENT_GONE)

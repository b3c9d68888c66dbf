"""A handler that sets its own affinity through the C library's idea of its thread id."""

import ctypes
import os

from poold import Connection


def serve(connection: Connection) -> None:
    """Set the affinity of pthread_self() to the first processor, and say so."""
    libc = ctypes.CDLL(None)
    libc.pthread_self.restype = ctypes.c_void_p
    mask = ctypes.c_ulong(1 << min(os.sched_getaffinity(0)))
    libc.pthread_setaffinity_np.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    result = libc.pthread_setaffinity_np(libc.pthread_self(), ctypes.sizeof(mask), ctypes.byref(mask))
    connection.socket.sendall(f"{os.getpid()} {result}\n".encode())
    connection.reader.read()

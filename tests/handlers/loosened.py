"""The handler of `attacker`, whose import blocks every signal and lets go of the signal that comes with the master's death."""

import ctypes
import signal

from attacker import serve

__all__ = ["serve"]

signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)

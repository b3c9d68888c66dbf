"""The closed sets of words that several processes share: kinds, states, causes, reasons.

Each is the value of a metric's label, a word of the log and a word of `poold ps`; none is ever made from what a peer sent.
The order of the members is the order of their cells in the scoreboard: append, never reorder.
"""

from enum import StrEnum


class Kind(StrEnum):
    """What a child of the master is for."""

    WORKER = "worker"
    MOLD = "mold"
    EXPORTER = "exporter"
    TRIAL = "trial"
    LOGGER = "logger"


class State(StrEnum):
    """Where a child is in its life; a worker is serving from the hand-over on, other kinds are starting, then serving."""

    STARTING = "starting"
    SPARE = "spare"
    SERVING = "serving"
    RETIRING = "retiring"
    TERMINATING = "terminating"
    KILLED = "killed"


class Cause(StrEnum):
    """Why a session ended; the first decision wins, the master's own before what the kernel reports."""

    OK = "ok"
    EXIT = "exit"
    SIGNAL = "signal"
    OOM = "oom"
    TIMEOUT_STARTUP = "timeout_startup"
    TIMEOUT_HANDSHAKE = "timeout_handshake"
    TIMEOUT_IDLE = "timeout_idle"
    TIMEOUT_SESSION = "timeout_session"
    CLIENT_GONE = "client_gone"
    HANDSHAKE_ERROR = "handshake_error"
    DRAINED = "drained"
    KILLED = "killed"
    LOST = "lost"


class Refusal(StrEnum):
    """Why an accepted connection did not become a session."""

    FULL = "full"
    SOURCE_FULL = "source_full"
    SOURCE_RATE = "source_rate"
    DENIED = "denied"
    PENALTY = "penalty"
    NO_RESOURCES = "no_resources"
    DRAINING = "draining"
    NOT_TRUSTED = "not_trusted"


class Failure(StrEnum):
    """Why a child counts as failed."""

    EXIT = "exit"
    SIGNAL = "signal"
    OOM = "oom"
    STILLBORN = "stillborn"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"


class ReloadResult(StrEnum):
    """How a reload ended."""

    APPLIED = "applied"
    REFUSED = "refused"
    BUSY = "busy"


class UpgradeResult(StrEnum):
    """How an upgrade ended."""

    APPLIED = "applied"
    REFUSED = "refused"
    BUSY = "busy"
    UNDONE = "undone"


# What accept() and the clone are known to fail with (accept(2), clone(2)); everything else is counted as "other".
ACCEPT_ERRNOS = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "EHOSTUNREACH", "EINVAL", "other")
FORK_ERRNOS = ("EAGAIN", "ENOMEM", "EMFILE", "ENFILE", "ENOSPC", "EPERM", "ENOSYS", "ETOOMANYREFS", "other")

"""The closed sets of words that several processes share: kinds, states, causes, reasons.

Each word is the value of a metric's label, a word of the log and a word of `poold ps`. No word ever
comes from what a peer has sent. The order of the members is the order of their cells in the
scoreboard: append, never reorder.
"""

from enum import StrEnum


class Kind(StrEnum):
    """The kinds of the master's children."""

    WORKER = "worker"
    MOLD = "mold"
    EXPORTER = "exporter"
    TRIAL = "trial"
    LOGGER = "logger"


class State(StrEnum):
    """The states of a child.

    A worker is serving from the hand-over on. Other kinds are starting, then serving.
    """

    STARTING = "starting"
    SPARE = "spare"
    SERVING = "serving"
    RETIRING = "retiring"
    TERMINATING = "terminating"
    KILLED = "killed"


class Cause(StrEnum):
    """Why a session has ended.

    The first decision counts. A decision of the master comes before a report of the kernel.
    """

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


# The most names of listeners: in one settings file, and in one life of poold, because a label
# of a metric never disappears.
LISTENERS_MAX = 64

# The known errors of accept(2) and clone(2). Any other error counts as "other".
ACCEPT_ERRNOS = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "EHOSTUNREACH", "EINVAL", "other")
FORK_ERRNOS = ("EAGAIN", "ENOMEM", "EMFILE", "ENFILE", "ENOSPC", "EPERM", "ENOSYS", "ETOOMANYREFS", "other")

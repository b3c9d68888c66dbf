"""The chat handler: rooms and names for many clients, each served by a process of its own.

Lines travel from session to session through FIFOs (`room`, `hall`): there is no server beside poold, and nobody waits for anybody. A
client speaks plain lines (`member`), and a `session` brings both together. The options are those of `options`.
"""

from poold.handlers.chat.options import check_options
from poold.handlers.chat.session import serve

__all__ = ["check_options", "serve"]

"""The chat handler: rooms and names for many clients, with one process for each client.

The sessions send lines to each other through FIFOs (`room`, `hall`). There is no other server
process, and no session waits for another. A client types plain lines (`member`). A `session` joins
the client and the FIFO. `options` defines the options.
"""

from poold.handlers.chat.options import check_options
from poold.handlers.chat.session import serve

__all__ = ["check_options", "serve"]

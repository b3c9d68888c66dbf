"""The handlers that ship: `echo`, `daytime` (RFC 867) and `chat`, each with a `serve` that takes one `poold.Connection`.

They are ordinary handlers: they use what any handler may use and know nothing of master, mold or worker. A mold imports only
the one it is set to serve, and pays for that at every fork; hence their few imports. What must never happen here: a thread, a
process or a descriptor that an import leaves behind.
"""

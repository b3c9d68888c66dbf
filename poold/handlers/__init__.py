"""The handlers that come with poold: `echo`, `daytime` (RFC 867), `chat`.

Each has a function `serve` that takes one `poold.Connection`. They use what any handler may use,
and know nothing of master, mold or worker. A mold imports only the handler that the settings name.
Each clone pays for the memory of that import, so these handlers import little. Their import must
leave no thread, no process and no open descriptor behind.
"""

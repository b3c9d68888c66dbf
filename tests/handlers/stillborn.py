"""A handler whose import kills the process, first thing."""

import os

os._exit(3)


def serve(connection: object) -> None:
    """Never be reached."""

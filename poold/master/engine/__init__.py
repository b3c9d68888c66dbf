"""Waiting for descriptors, signals and deadlines. Nothing here knows of pools or children."""

"""Waiting: for descriptors, signals and moments. Nothing here knows anything of poold."""

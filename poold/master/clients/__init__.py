"""Whoever connects, from the listening socket to the session's end."""

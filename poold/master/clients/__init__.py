"""Clients, from the listening socket to the end of the session."""

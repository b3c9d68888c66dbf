"""Replacing the program: the same process goes on as the code that is on disk by then."""

"""The worker: the process that serves a connection.

It is born idle as a clone of the mold, waits on its channel for a connection, serves it and exits; it never goes back to
accept. It may assume that privileges are dropped, that no signal is blocked and that none of the master's descriptors exist
here. It is the only process that reads a client's bytes, and it never imports anything of `poold.master`.
"""

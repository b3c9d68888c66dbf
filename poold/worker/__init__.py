"""The worker: the process that serves connections.

The mold clones each worker. The worker waits on its channel for a connection, serves the connection
and exits. A worker never accepts a connection.

When a worker begins, its privileges are dropped, no signal is blocked, and no descriptor of the
master's is open. Only a worker reads the bytes of a client. A worker imports nothing of
`poold.master`.
"""

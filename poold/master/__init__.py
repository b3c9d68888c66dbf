"""The master: owns the listening sockets, the signals and the table of children.

The master decides, and starts other processes for all else. The master waits only in its selector
and has one thread. The master reads no byte of a client, and imports no user code. Modules of
`poold.worker`, `poold.mold` and `poold.exporter` are not imported either. The work in one turn of
the loop is bounded.
"""

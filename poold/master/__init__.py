"""The master: owns the listening sockets, the signals and the table of children.

The master decides, and starts other processes for all else. The master has one thread. While it
serves, the master waits only in its loop. The master looks at no byte of a client, and imports no
user code. Modules of `poold.worker`, `poold.mold`, `poold.exporter` and `poold.logger` are not
imported either. The work in one turn of the loop is bounded.
"""

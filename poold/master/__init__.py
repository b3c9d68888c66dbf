"""The master: owns the listening sockets, the signals and the table of children.

It decides; it never waits but in its selector, never runs a second thread, never reads a client's byte, never imports user code
or anything of `poold.worker`, `poold.mold` or `poold.exporter`: it starts them. Work in one turn of its loop is bounded.
"""

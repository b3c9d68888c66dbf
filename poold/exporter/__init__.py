"""The exporter: a process of its own that answers Prometheus from the counters in shared memory.

It holds a read-only view, the metrics listener and a lifeline to the master, and nothing else: what a scraper does to it harms
nobody. It never imports anything of `poold.master`, and it is the only process with threads.
"""

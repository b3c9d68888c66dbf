"""The exporter: a process of its own that answers Prometheus from the counters in shared memory.

It holds a read-only view, the metrics listener and a lifeline to the master, and nothing else: what a scraper does to it harms
nobody. It never imports anything of `poold.master`.

    reception ─▶ request ─▶ site ─▶ answer        one exchange: a connection, one request, one answer
                              │
                 lifeline, formats, collector     is the master there; which format; the figures

One thread, one loop: nobody can make it wait, because nothing in it waits but the loop.
"""

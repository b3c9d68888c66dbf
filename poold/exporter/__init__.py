"""The exporter: a process that answers Prometheus from the counters in shared memory.

The exporter holds a read-only view of the counters, the metrics listener and a lifeline to the
master, and nothing else. So what a scraper does to the exporter harms no session. The exporter
imports nothing of `poold.master`.

    reception ─▶ request ─▶ site ─▶ answer       an exchange: connection, one request, one answer
                              │
                 lifeline, formats, collector    the master's answer; the format; the figures

The exporter has one thread and one loop. Nothing but the loop waits, so no scraper holds up
another.
"""

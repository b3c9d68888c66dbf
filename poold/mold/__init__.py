"""The mold: the process that workers are cloned from.

The mold drops privileges, imports the handler once, and then clones a worker for each order of the
master. User code therefore never runs in the master, and a worker needs no import of its own.

Each clone copies the page tables of all that the mold has loaded. The mold therefore loads the
worker, the handler and little else, and imports nothing of `poold.master`.
"""

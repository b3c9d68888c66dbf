"""The mold: the process that workers are cloned from.

It exists so that user code never runs in the master and so that a worker costs little: it drops privileges, imports the handler
once, and then clones a worker for each order. Whatever is loaded here is paid for by every worker at every clone, so it loads
the worker, the handler and little else, and it never imports anything of `poold.master`.
"""

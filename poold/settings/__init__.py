"""The settings: poold.toml in, one frozen `Config` out, or every problem with its key and line.

Used by the command line and, before anything is applied, by whoever judges settings for the master. Nothing here is ever loaded by a
mold or a worker: they get what they need as plain values.

    file       find the file, read it, judge it; the public face
    schema     names, ranges and defaults
    fields     kinds of value, and how a wrong one is described
    toml       TOML text to values and back
    lines      which line a key is on
    preflight  what this machine has to have: accounts, folders, addresses, programs
"""

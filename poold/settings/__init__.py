"""The settings: poold.toml in, one frozen `Config` out, or every problem with its key and line.

Whoever judges settings does so in a process that ends: `poold check`, the trial of a reload, or a fork at the start. The master holds
what came out as plain values, and what molds and workers need of them crosses as plain values too.

    file       where the file is, its bytes; where the control socket is
    config     the settings as the master holds them, and the document in which they cross to it
    judge      bytes in; settings, or every problem with its key and line, out
    apart      the judge in a process of its own, at the start
    trial      the same for a reload
    schema     names, ranges and defaults
    fields     kinds of value, and how a wrong one is described
    descriptors how many open files the master may need
    toml       TOML text to values and back
    lines      which line a key is on
    people     accounts as numbers
    preflight  what this machine has to have: accounts, folders, addresses, programs
"""

"""The settings: the bytes of poold.toml go in; a frozen `Config` or every problem comes out.

Each setting is declared once, in `config`; the other modules derive from the declarations what they
accept, say and write. A process that judges settings ends afterwards: `poold check`, the fork at
the master's start, or the trial of a reload. The master gets the result as JSON and loads no
pydantic.

    annotations    what annotates a declaration: range, unit, hint
    config         the declarations, and the document in which settings cross to the master
    file           where the settings file is, and its bytes; where the control socket is
    judge          from bytes to settings, or to problems with key and line
    judge_in_fork  the judge in a forked process, for the master's start
    trial          the judge in a fresh interpreter, for a reload
    toml           from TOML text to settings and back
    lines          the line of each key
    schema         pydantic models of the declarations
    fields         what a single setting accepts, and the message for a wrong value
    rules          what one setting has to do with another
    preflight      what this machine must have: accounts, folders, addresses, programs
    people         accounts as numbers
    descriptors    how many open files the master may need
"""

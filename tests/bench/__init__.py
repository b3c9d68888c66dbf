"""poold and others, side by side on one machine: `python -m tests.bench`, `--quick` for a first idea, `--help` for the rest.

Each server of `peers` serves the same few bytes. What is measured, and where:

    loops       closed: N sessions at a time, as many as the server can take; open: sessions that fall due at a fixed rate
    held        up to 10,000 sessions at a time: memory of each, time to open one more
    master      poold's master meanwhile: memory, descriptors, wakeups, and how long scrape, `status` and `ps` take
    moments     the longest wait of a newcomer during a reload; from start to READY

What makes the figures comparable:

- Everything is of one run on one machine; only ratios within a run mean something. In each round every server has one turn, ABCABC…,
  so that what drifts (clock, temperature, neighbours) drifts for all; ratios are taken within rounds, and of those the median.
- A turn is a fresh process with a port and a folder of its own. It is waited for by being served, and ended with all that came of it:
  this program is the reaper of its descendants, so what is left behind is found and killed, also on Ctrl-C.
- The server and all its children have one core, the load generator and this program the other; affinity is inherited across exec.
- Latency is counted from the time a session was due. A load generator that waits for a slow server would not send what would have
  shown how slow it was; this one keeps its time-table. A session that was refused, lost or answered wrongly is counted as failed.
- Memory is what the whole machine has less of, in all processes and the kernel, before and after the sessions were opened; so is what
  they share counted once. The pages they take have been in use until then: see `memory.Ballast`.
- Nothing runs between two measurements of one server but a short rest, in which it finishes what its last clients left to be done.

That the load generator is not what is measured is checked in each run: `costless`, an epoll server in C that does next to nothing for a
session, has its turns like the others. What the generator reaches against it is its ceiling, and the report says how far below the
fastest server is. In every closed loop the generator's own use of its core is recorded, and runs in which it was above 90 % are marked.

A newcomer's wait during a reload may be the machine's: with each is recorded how long neither poold nor anybody else could run (pauses.c).

The servers fork and the load generator does not: load.c. What was measured is in `results`, as it was measured; `summary`, `targets`,
`report` and `charts` only read it. Needs two cores, cc, and `pip install '.[bench]'`; servers that are not installed are left out by
name.
"""

"""An hour of attacks on one daemon: `python -m tests.soak.hostile [--minutes 60] [--seed N] [--rate 50]`; for root, on loopback.

A poold runs as root with `[server] user = "nobody"`. Fifty honest sessions a second check that their own nonce comes back, a few more are
held all the time, and meanwhile two lanes of attacks go on, one after the other in each: the *daemon's* (handlers whose import does its
worst, requests on the control socket, settings, what happens to the machine) and the *wire's* (sessions, clients, scrapers). The seed
settles which attacks come in which order, and each has a random generator of its own, made from the seed and its number: `--seed N`
repeats the plan, `--only NAME …` takes some attacks out of it, each with the number it had.

It ends with 1, and with the command that repeats it, when

- an honest session is lost, refused, or gets another one's nonce;
- a law is broken in a scrape, or a counter falls (`tests.support.broken_laws`);
- a process holds what it may not (`tests.rights`);
- an attack gets hold of what it may not, or what must be applied or refused is not;
- the daemon dies, gives up, or meets an error of its own;
- something is left at the end: a process, a zombie, a socket file, a file in the temp folder, memory or descriptors of the master's.

Where things are: `attack` says what an attack is, `plan` puts them in order, `scene` is the daemon with all that belongs to it, `crowd` are
the honest clients, `logwatch` reads the log, `verdict` looks for what is wrong while it runs and at the end. An attack is a row and a
function in the file of its kind: `sessions` (done by tests/handlers/hostile.py), `imports`, `clients`, `scrapers`, `control`, `settings`,
`machine`.
"""

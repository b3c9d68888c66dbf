"""The servers that are compared, each started as its own documentation would have it.

Every one gets a port of 127.0.0.1, a backlog of 1024 where it can be told, and no cap below the load. Nothing is tuned beyond that:
what would only show a limit is raised, what is a choice stays at its default unless `about` says otherwise.
"""

import dataclasses
import os
import pwd
from collections.abc import Callable
from pathlib import Path

from tests.bench.peer import HTTP, Peer, Place

HERE = Path(__file__).parent
POOLD = "poold"
CEILING = "costless"
APACHE_MODULES = "/usr/lib/apache2/modules"

ECHO_HANDLER = "poold.handlers.echo:serve"
WEB_HANDLER = "web:Hello"
COLD = "min_spare = 0\nmax_spare = 0\n"
# A worker that is reused goes back among the spares, so max_spare must be above the load or workers would be retired between two
# sessions and made again.
REUSED = "connections_per_child = 0\nmin_spare = 32\nmax_spare = 256\n"


def poold(handler: str, pool: str = "") -> Callable[[Place], list[str]]:
    """Return how poold is started with these settings of its pool."""

    def command(place: Place) -> list[str]:
        config = place.folder / "poold.toml"
        config.write_text(f"""\
[server]
handler = "{handler}"
path = ["{HERE}"]
[[listener]]
address = "tcp://127.0.0.1:{place.port}"
[pool]
max_children = {place.sessions}
{pool}[metrics]
listen = "tcp://127.0.0.1:{place.metrics_port}"
[control]
socket = "{place.control}"
[log]
level = "warning"
""")
        return [place.python, "-m", "poold", "run", "-c", str(config)]

    return command


def own_program(name: str) -> Callable[[Place], list[str]]:
    """Return how one of this folder's C programs is started."""
    return lambda place: [str(place.programs / name), "127.0.0.1", str(place.port)]


def forking_tcp(place: Place) -> list[str]:
    """Return how the standard library's forking server is started."""
    return [place.python, str(HERE / "forking_tcp.py"), "127.0.0.1", str(place.port)]


def tcpserver(place: Place) -> list[str]:
    """Return how tcpserver is started: no look-ups of names or users."""
    return ["tcpserver", "-HRl0", "-c", str(place.sessions), "-b", "1024", "127.0.0.1", str(place.port), "/bin/cat"]


def xinetd(place: Place) -> list[str]:
    """Return how xinetd is started: no limits, no access files, no log of each connection."""
    config = place.folder / "xinetd.conf"
    config.write_text(f"""\
service echo-bench
{{
    type = UNLISTED
    flags = NOLIBWRAP
    socket_type = stream
    protocol = tcp
    bind = 127.0.0.1
    port = {place.port}
    wait = no
    user = {pwd.getpwuid(os.geteuid()).pw_name}
    server = /bin/cat
    instances = UNLIMITED
    per_source = UNLIMITED
    cps = 1000000 1
    log_type = FILE /dev/null
    disable = no
}}
""")
    return ["xinetd", "-dontfork", "-f", str(config), "-pidfile", str(place.folder / "xinetd.pid")]


def socat(place: Place) -> list[str]:
    """Return how socat is started."""
    return ["socat", f"TCP-LISTEN:{place.port},bind=127.0.0.1,fork,reuseaddr,backlog=1024", "EXEC:/bin/cat"]


def socket_activate(place: Place) -> list[str]:
    """Return how systemd's small inetd is started, without its line for each connection."""
    listen = f"127.0.0.1:{place.port}"
    return ["env", "SYSTEMD_LOG_LEVEL=warning", "systemd-socket-activate", "--accept", "--inetd", "-l", listen, "/bin/cat"]


def gunicorn(place: Place) -> list[str]:
    """Return how gunicorn's sync worker is started."""
    options = ["-w", "4", "-b", f"127.0.0.1:{place.port}", "--backlog", "1024", "--log-level", "warning", "--no-control-socket"]
    return [place.python, "-m", "gunicorn", *options, "--chdir", str(HERE), "wsgi:application"]


def apache(connections_per_child: int) -> Callable[[Place], list[str]]:
    """Return how Apache's prefork MPM is started with this MaxConnectionsPerChild."""

    def command(place: Place) -> list[str]:
        files = place.folder / "htdocs"
        files.mkdir()
        (files / "hello.txt").write_text("hello\n")
        # Its children are another user where it is started as root.
        for folder in (place.folder, files):
            folder.chmod(0o755)
        config = place.folder / "apache2.conf"
        config.write_text(f"""\
ServerRoot {place.folder}
ServerName localhost
Listen 127.0.0.1:{place.port}
ListenBackLog 1024
LoadModule mpm_prefork_module {APACHE_MODULES}/mod_mpm_prefork.so
LoadModule authz_core_module {APACHE_MODULES}/mod_authz_core.so
User www-data
Group www-data
PidFile {place.folder}/apache2.pid
ErrorLog {place.folder}/error.log
LogLevel error
DocumentRoot {files}
ServerLimit {place.sessions}
MaxRequestWorkers {place.sessions}
MaxConnectionsPerChild {connections_per_child}
""")
        return ["apache2", "-f", str(config), "-DFOREGROUND"]

    return command


def before(python: str) -> Peer:
    """Return poold as that other interpreter has it installed: what a change costs, side by side."""
    return Peer(
        "poold-before",
        f"poold as it is installed for {python}",
        lambda place: poold(ECHO_HANDLER)(dataclasses.replace(place, python=python)),
        version=(python, "-m", "poold", "--version"),
        holds=True,
    )


POOLD_VERSION = ("python", "-m", "poold", "--version")
PYTHON_VERSION = ("python", "--version")

PEERS = (
    Peer(
        POOLD,
        "poold with spares (defaults): a process per connection, forked ahead",
        poold(ECHO_HANDLER),
        module="poold",
        version=POOLD_VERSION,
        holds=True,
    ),
    Peer(
        "poold-cold",
        "poold without spares: forked when the client is there",
        poold(ECHO_HANDLER, COLD),
        module="poold",
        version=POOLD_VERSION,
    ),
    Peer(
        "poold-reused",
        "poold with workers reused: connections_per_child 0, 32 to 256 spares",
        poold(ECHO_HANDLER, REUSED),
        module="poold",
        version=POOLD_VERSION,
    ),
    Peer("ForkingTCPServer", "socketserver.ForkingTCPServer, backlog 1024, no cap", forking_tcp, version=PYTHON_VERSION, holds=True),
    Peer(
        "tcpserver", "tcpserver -HRl0 with /bin/cat", tcpserver, program="tcpserver", version=("dpkg-query", "-W", "ucspi-tcp"), holds=True
    ),
    Peer("xinetd", "xinetd without limits, with /bin/cat", xinetd, program="xinetd", version=("xinetd", "-version")),
    Peer("socat", "socat TCP-LISTEN fork with EXEC:/bin/cat", socat, program="socat", version=("dpkg-query", "-W", "socat")),
    Peer(
        "systemd-socket-activate",
        "systemd-socket-activate --accept --inetd with /bin/cat",
        socket_activate,
        program="systemd-socket-activate",
        version=("systemd-socket-activate", "--version"),
    ),
    Peer("C-fork", "fork() in C and nothing else (forking.c)", own_program("forking"), version=("cc", "--version"), holds=True),
    Peer(CEILING, "one process for all, epoll, in C (costless.c): the load generator's ceiling", own_program("costless")),
    Peer(
        "poold-http",
        "poold with spares, http.server.BaseHTTPRequestHandler",
        poold(WEB_HANDLER),
        service=HTTP,
        module="poold",
        version=POOLD_VERSION,
    ),
    Peer(
        "poold-http-reused",
        "the same, workers reused as in poold-reused",
        poold(WEB_HANDLER, REUSED),
        service=HTTP,
        module="poold",
        version=POOLD_VERSION,
    ),
    Peer(
        "gunicorn",
        "gunicorn -w 4, sync workers, a WSGI function; its workers are reused",
        gunicorn,
        service=HTTP,
        module="gunicorn",
        version=("python", "-m", "gunicorn", "--version"),
    ),
    Peer(
        "apache-one",
        "Apache prefork, MaxConnectionsPerChild 1, a small file; its parent makes up for dead children once a second",
        apache(1),
        service=HTTP,
        program="apache2",
        version=("apache2", "-v"),
    ),
    Peer(
        "apache",
        "Apache prefork, MaxConnectionsPerChild 0 (default): children are reused",
        apache(0),
        service=HTTP,
        program="apache2",
        version=("apache2", "-v"),
    ),
)

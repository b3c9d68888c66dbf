"""The only place where the master becomes another program: execve, with exactly the descriptors that the next one is to have."""

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import NoReturn

from poold import arguments
from poold.errors import ExitCode
from poold.log import log
from poold.master.children.spawn import HOME, SUCCESSOR, memory_file
from poold.settings.config import LogFormat

# The first lines of the next program. They are the old one's and need nothing of poold, because they must be able to say so when nothing
# of the new one can be loaded: with the standard library, in the shape that `poold.log` gives to lines.
PROGRAM = """\
import os, sys
try:
    sys.path.insert(0, sys.argv.pop(1))
    import poold
    del sys.path[0]
    from {module} import main
    main()
except BaseException as error:
    try:
        import json, time, traceback
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        said = dict(reason=f"{{type(error).__name__}}: {{error}}"[:256], traceback="".join(traceback.format_exception(error))[-3000:])
        if {as_json}:
            line = json.dumps(dict(time=now, level="error", event="upgrade_failed", **said))
        else:
            line = " ".join([{head}, "error upgrade_failed", *(f"{{key}}={{json.dumps(value)}}" for key, value in said.items())])
        os.write(2, (line + "\\n").encode())
    finally:
        os._exit({code})
"""


def exec_successor(document: bytes, fds: Iterable[int], environ: Mapping[str, str], *, guard: int, log_format: LogFormat) -> NoReturn:
    """Become `poold.master.successor` of the code that is on disk now: the same process, the same children.

    It gets the document, these descriptors, that of its guard, and this environment; should it not even be loaded, it says so in
    this format. Raises OSError when it cannot be executed, and everything is as it was.
    """
    state = memory_file("state", document)
    given = {"state": state, "guard": guard}
    inherited = [*given.values(), *fds]
    head = '"<3>"' if log.journal else "now"
    program = PROGRAM.format(module=SUCCESSOR, as_json=log_format is LogFormat.JSON, head=head, code=int(ExitCode.INTERNAL))
    command = [sys.executable, "-P", "-c", program, HOME, *arguments.write(given)]
    try:
        for fd in inherited:
            os.set_inheritable(fd, True)
        os.execve(sys.executable, command, dict(environ))
    finally:
        for fd in inherited:
            with contextlib.suppress(OSError):  # what is no descriptor any more is nobody's to inherit either
                os.set_inheritable(fd, False)
        os.close(state)

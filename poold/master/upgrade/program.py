"""The only module in which the master becomes another program, by execve(2).

The next program gets exactly the descriptors that the next program needs.
"""

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

# The first lines of the next program. They come from the old program and need nothing of poold. If
# the new code cannot be loaded, they must still log the reason. They use the standard library, and
# write lines in the format of `poold.log`.
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
    """Become `poold.master.successor` of the code on disk: the same process, the same children.

    The new program gets the document, the descriptors `fds`, the descriptor of the guard, and this
    environment. If the new program cannot be loaded, its first lines log that in this format.
    Raises OSError if the exec fails, and nothing has changed then.
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
            with contextlib.suppress(OSError):  # a number that is no descriptor any more cannot be inherited
                os.set_inheritable(fd, False)
        os.close(state)

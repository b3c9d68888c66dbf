"""The trial: a process that judges settings for a reload. Whatever it meets, the master goes on as it is.

Started by the master as a fresh interpreter, with the bytes that would be applied (`text`) and where they come from (`settings`,
JSON with `file` and `master`). It writes its verdict as JSON into `result`, a memory file, and exits with 0 (see
`poold.settings.judge.verdict`). It imports no handler.
"""

import json
import os
import sys
from pathlib import Path

from poold import arguments, sandbox, stream
from poold.settings import judge
from poold.title import set_title

TEXT_MAX = 2 << 20


def main() -> None:
    """Judge, and write down the verdict."""
    sandbox.forbid_inspection()
    fds = arguments.read(sys.argv[1:])
    stream.install()
    set_title("trial")
    document = json.loads(os.pread(fds["settings"], TEXT_MAX, 0))
    sandbox.kill_with_parent(document.get("master"))
    file = Path(document["file"]) if document["file"] else None
    data = json.dumps(judge.verdict(os.pread(fds["text"], TEXT_MAX, 0), file, environ=os.environ)).encode()
    while data:
        data = data[os.write(fds["result"], data) :]

"""The trial: a process that judges settings for a reload. No fault of the trial stops the master.

The master starts a fresh interpreter with two memory files. `text` has the bytes that a reload
would apply. `settings` is JSON with the `file` of these bytes and the pid of the `master`. The
trial writes `poold.settings.judge.verdict` as JSON into `result`, a third memory file, and exits
with 0. The trial imports no handler.
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
    """Judge the settings, and write the verdict."""
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

"""The trial: a process that judges settings for a reload. Whatever it meets, the master goes on as it is.

Started by the master as a fresh interpreter, with the bytes that would be applied (`text`) and where they come from (`settings`,
JSON with `file`). It writes its verdict as JSON into `result`, a memory file, and exits with 0: either `settings` (TOML with every
name resolved), `people` and `warnings`, or `problems`, each with `key`, `message` and `line`. It imports no handler.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from poold.errors import ConfigError, Problem
from poold.settings import file, people
from poold.title import set_title

TEXT_MAX = 2 << 20


def main() -> None:
    """Judge, and write down the verdict."""
    fds = {name: int(number) for name, _, number in (argument.partition("=") for argument in sys.argv[1:])}
    set_title("trial")
    document = json.loads(os.pread(fds["settings"], TEXT_MAX, 0))
    verdict = judge(os.pread(fds["text"], TEXT_MAX, 0), Path(document["file"]) if document["file"] else None)
    data = json.dumps(verdict).encode()
    while data:
        data = data[os.write(fds["result"], data) :]


def judge(text: bytes, path: Path | None) -> dict[str, Any]:
    """Return the verdict on these bytes."""
    try:
        config = file.prepare(text, path, environ=os.environ)
        found = people.people(config.server)
        resolved = people.numbered(config)
    except ConfigError as error:
        return refusal(error.problems)
    except LookupError as error:
        return refusal([Problem("server.user", str(error))])
    identities = {"workers": found.workers, "helper": found.helper, "variables": found.variables}
    warnings = file.cautions(path) if path is not None else ()
    return {"settings": file.effective(resolved), "people": identities, "warnings": warnings}


def refusal(problems: list[Problem]) -> dict[str, Any]:
    """Return the verdict that says no."""
    return {"problems": [{"key": problem.key, "message": problem.message, "line": problem.line} for problem in problems]}

"""Judging settings at the start, in a process that ends, so that the master is not what loads what judging needs."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poold import sandbox
from poold.errors import ConfigError, Problem


def verdict(data: bytes, file: Path | None, *, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return `poold.settings.judge.verdict` of these bytes. Raises ConfigError when there is none, OSError.

    To be called before there is a second thread: a fork and not a fresh interpreter, which would take longer to start than to judge.
    """
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _judge(data, file, environ, writer, parent)
    os.close(writer)
    with open(reader, "rb") as answer:
        text = answer.read()
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise ConfigError([Problem("", f"the settings could not be judged: the process that did ended with {status:#x}")])
    found: dict[str, Any] = json.loads(text)
    return found


def _judge(data: bytes, file: Path | None, environ: Mapping[str, str], writer: int, parent: int) -> None:
    code = 1
    try:
        # It has every socket that was passed, and may wait for a name service: whoever is started next could not have them.
        sandbox.kill_with_parent(parent)
        # Or pydantic would look through every installed distribution for plugins, a tenth of the time that this takes.
        os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
        from poold.settings import judge  # what this process is for

        with open(writer, "wb") as answer:
            answer.write(json.dumps(judge.verdict(data, file, environ=environ)).encode())
        code = 0
    except BaseException as error:
        # Nothing may climb out into the code of the process that asked.
        from poold.log import escaped, trace

        print(escaped(trace(error)), file=sys.stderr, flush=True)
    finally:
        os._exit(code)

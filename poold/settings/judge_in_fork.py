"""Judging settings at the start of the master, in a forked process that ends.

The fork loads pydantic and what else the judging needs, so the master never does. `trial` judges
for a reload.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poold import sandbox
from poold.errors import ConfigError, Problem


def judge_in_fork(data: bytes, file: Path | None, *, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the verdict of `poold.settings.judge`. Raises OSError, and ConfigError without one.

    The caller has no second thread. A fork starts sooner than a fresh interpreter.
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
    """Write the verdict as JSON to `writer`, and end this process."""
    code = 1
    try:
        # The fork holds every passed socket and may wait for a name service. If the fork outlived
        # the master, the next master could not bind those addresses.
        sandbox.vanish_with(parent)
        # Otherwise pydantic would search every installed distribution for plugins.
        os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
        from poold.settings import judge  # loads pydantic

        with open(writer, "wb") as answer:
            answer.write(json.dumps(judge.verdict(data, file, environ=environ)).encode())
        code = 0
    except BaseException as error:
        # An exception that left this function would run the master's code in the fork.
        from poold.log import escaped, trace

        print(escaped(trace(error)), file=sys.stderr, flush=True)
    finally:
        os._exit(code)

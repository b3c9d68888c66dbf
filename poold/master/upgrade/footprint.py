"""What a program is made of on disk: which files, and how to tell that one of them is another by now.

The trial of an upgrade puts down what the new program will load, and the master looks again just before it becomes that program: what
was tried must be what is executed. The list crosses between versions: one that is not there is no list, and what an entry says besides
is ignored.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

# Looked at in the pause of an upgrade, a few microseconds each.
FILES_MAX = 1000


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was (stat(2)): times in nanoseconds."""

    path: str
    device: int
    inode: int
    size: int
    modified: int


def look(path: str) -> File:
    """Return a file as it is now, the one that a link leads to. Raises OSError."""
    status = os.stat(path)
    return File(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def write(files: Iterable[File]) -> list[dict[str, Any]]:
    """Return what JSON carries of a list of files."""
    return [asdict(file) for file in files]


def read(listed: Any) -> tuple[File, ...]:
    """Return the files of a list as another version may have written it. Raises ValueError."""
    if not isinstance(listed, list) or len(listed) > FILES_MAX:
        raise ValueError(f"it lists no files, or more than {FILES_MAX}")
    try:
        return tuple(File(*(each[name] for name in File.__slots__)) for each in listed)
    except (TypeError, LookupError) as error:
        raise ValueError(f"it lists what is no file: {error}") from error


def changed(files: Iterable[File]) -> str | None:
    """Return the first path where there is another file by now, or none; None if there is no such."""
    for file in files:
        try:
            if look(file.path) != file:
                return file.path
        except (OSError, ValueError, TypeError):
            # It is gone; or another version has written what is no path.
            return file.path
    return None

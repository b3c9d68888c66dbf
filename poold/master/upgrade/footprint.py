"""The files that a program consists of, and whether one of them has changed since a first look.

The trial of an upgrade lists the files that the new program will load. The master looks again just
before the exec, because the master must execute what the trial has tried.

The list crosses between versions of poold. A trial of an older version may give no list, and fields
of an entry that this version does not know are ignored.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

# The most files of a list. The master looks at them while clients wait.
FILES_MAX = 1000


@dataclass(frozen=True, slots=True)
class FileState:
    """A file as stat(2) describes the file. `modified` is in nanoseconds."""

    path: str
    device: int
    inode: int
    size: int
    modified: int


def look(path: str) -> FileState:
    """Return a file as the file is now, links followed. Raises OSError."""
    status = os.stat(path)
    return FileState(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def write(files: Iterable[FileState]) -> list[dict[str, Any]]:
    """Return a list of files in a form that JSON carries."""
    return [asdict(file) for file in files]


def read(listed: Any) -> tuple[FileState, ...]:
    """Return the files of a list that another version may have written. Raises ValueError."""
    if not isinstance(listed, list) or len(listed) > FILES_MAX:
        raise ValueError(f"it lists no files, or more than {FILES_MAX}")
    try:
        return tuple(FileState(*(each[name] for name in FileState.__slots__)) for each in listed)
    except (TypeError, LookupError) as error:
        raise ValueError(f"it lists what is no file: {error}") from error


def changed(files: Iterable[FileState]) -> str | None:
    """Return the first path whose file has changed or is gone, or None."""
    for file in files:
        try:
            if look(file.path) != file:
                return file.path
        except (OSError, ValueError, TypeError):
            # The file is gone, or another version has written something that is no path.
            return file.path
    return None

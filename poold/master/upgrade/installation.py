"""The installed files, as the trial of an upgrade looks at them.

    damaged     compares the files with what the installer has written down (`record`)
    incomplete  finds undefined names, if the installer has written nothing down
    load        imports every module that `modules` names
    …_files     lists the files of the new program, for `poold.master.upgrade.footprint`

This module can be imported even if the rest of the package cannot, and needs the standard library
only.
"""

import base64
import csv
import hashlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions

from poold.errors import Problem
from poold.log import log, trace
from poold.master.children.spawn import HOME, PROGRAMS
from poold.master.upgrade import footprint, names
from poold.master.upgrade.footprint import FileState

PACKAGE = os.path.join(HOME, "poold")
# The modules in this folder are part of no process of poold, and may need what is not installed.
OPTIONAL = "handlers"


def record() -> Distribution | None:
    """Return the distribution that has recorded this package's files (PEP 376, RECORD), or None.

    There is no record for an editable installation, for a source checkout, and for some packages of
    Linux distributions.
    """
    for distribution in distributions(name="poold", path=[HOME]):
        if any(_recorded(distribution)):
            return distribution
    return None


def _recorded(distribution: Distribution) -> Iterator[tuple[str, str, str]]:
    """Yield path, checksum and size of each of the package's files, as RECORD has them.

    Files without a checksum, such as compiled bytecode, are left out. `Distribution.files` cannot
    be used. From Python 3.12 on, that property leaves out the files that are missing.
    """
    for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        if len(row) == 3 and row[1] and row[0].startswith("poold/"):
            yield row[0], row[1], row[2]


def damaged(recorded: Distribution) -> Iterator[Problem]:
    """Yield the files that are not as they were installed, by size and checksum (PEP 427)."""
    for name, checksum, size in _recorded(recorded):
        path = os.path.join(HOME, name)
        try:
            with open(path, "rb") as opened:
                data = opened.read()
        except OSError as error:
            yield Problem("", f"{path} cannot be read: {error.strerror}; install poold anew")
            continue
        mode, _, expected = checksum.partition("=")
        found = base64.urlsafe_b64encode(hashlib.new(mode, data).digest()).rstrip(b"=").decode()
        if found != expected or size not in ("", str(len(data))):
            yield Problem("", f"{path} is not as it was installed; install poold anew")


def incomplete(loaded: Iterable[str]) -> Iterator[Problem]:
    """Yield the names that these modules use but nothing defines.

    This is the check for an installation without a record of its files.
    """
    for name in loaded:
        for missing in names.undefined(name):
            yield Problem("", f"{name} uses {missing}, which is nowhere; install poold anew")
        if name in PROGRAMS and not hasattr(sys.modules[name], "main"):
            yield Problem("", f"{name} is a program without a main, which is nowhere; install poold anew")


def modules(folder: str = PACKAGE, package: str = "poold") -> Iterator[str]:
    """Yield the names of all modules that a process of poold may load.

    No other process loads all of them, to save memory. A trial may, because a trial ends soon.
    """
    for module in pkgutil.iter_modules([folder], f"{package}."):
        if module.ispkg and module.name != f"poold.{OPTIONAL}":
            yield module.name
            yield from modules(os.path.join(folder, module.name.rpartition(".")[2]), module.name)
        elif not module.ispkg and folder != PACKAGE:
            yield module.name


def load(modules: Iterable[str]) -> Iterator[Problem]:
    """Import these modules, and yield a problem for each that cannot be imported."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            log.error("upgrade_load_failed", module=name, traceback=trace(error))
            yield Problem("", f"{name} cannot be loaded: {type(error).__name__}: {error}")


def own_files() -> Iterator[FileState]:
    """Yield the package's source files, whether they are loaded or not."""
    for folder, folders, files in os.walk(PACKAGE):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".py"):
                yield footprint.look(os.path.join(folder, name))


def other_files() -> Iterator[FileState]:
    """Yield this process's other files: interpreter, other packages' modules, shared libraries."""
    places = {sys.executable}
    for module in list(sys.modules.values()):
        origin = getattr(getattr(module, "__spec__", None), "origin", None)
        if isinstance(origin, str) and os.path.isabs(origin) and not origin.startswith(PACKAGE + os.sep):
            places.add(origin)
    # proc_pid_maps(5): the executable mappings, each with its path at the end of the line.
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(None, 5)
            if len(fields) == 6 and "x" in fields[1] and fields[5].startswith("/"):
                places.add(fields[5])
    for place in sorted(places):
        try:
            yield footprint.look(place)
        except OSError:
            # The file was loaded from an archive, or is removed. A second look is not possible.
            continue

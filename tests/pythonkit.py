"""An interpreter that every user may run, with what poold needs, where the one that runs the tests lies under somebody's home."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import setproctitle

import poold as package

SYSTEM_PYTHON = "/usr/bin/python3"


@contextmanager
def shared_python() -> Iterator[str]:
    """Yield the path of an interpreter in a folder that everybody may read, with user sites; skip where there is none of this version."""
    version = [SYSTEM_PYTHON, "-c", "import sys; print(sys.version_info[:2])"]
    found = subprocess.run(version, capture_output=True, text=True, check=False).stdout if os.path.exists(SYSTEM_PYTHON) else "no"
    if found.strip() != str(sys.version_info[:2]):
        pytest.skip(f"{SYSTEM_PYTHON} has another version than {sys.version_info[:2]}, whose packages these are")
    with tempfile.TemporaryDirectory(prefix="poold-python-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        make = [SYSTEM_PYTHON, "-m", "venv", "--without-pip", "--system-site-packages", str(folder / "venv")]
        subprocess.run(make, check=True, umask=0o022)
        [site] = folder.glob("venv/lib/python3*/site-packages")
        for place in (Path(package.__file__).parent, *sorted(Path(setproctitle.__file__).parent.parent.iterdir())):
            if place.is_dir() and (place.name == "poold" or place.name.partition("-")[0] in NEEDED):
                shutil.copytree(place, site / place.name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            elif place.name == "typing_extensions.py":
                shutil.copy(place, site)
        subprocess.run(["chmod", "-R", "a+rX", str(site)], check=True)
        yield str(folder / "venv" / "bin" / "python3")


NEEDED = ("setproctitle", "prometheus_client", "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "tomli_w")

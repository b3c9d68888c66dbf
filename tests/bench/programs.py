"""The C programs of this folder, compiled on the spot."""

import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent
NAMES = ("load", "costless", "forking", "pauses")


def compile_all(folder: Path) -> None:
    """Compile every program into a folder. Raises CalledProcessError, or FileNotFoundError where there is no cc."""
    for name in NAMES:
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(folder / name), str(SOURCES / f"{name}.c")], check=True)

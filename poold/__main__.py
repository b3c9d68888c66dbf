"""Runs the command line for `python -m poold`."""

import sys

from poold.cli import main

sys.exit(main())

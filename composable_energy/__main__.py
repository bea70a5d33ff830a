"""Runs the command line with `python -m composable_energy`."""

import sys

from composable_energy.cli import main

if __name__ == "__main__":
    sys.exit(main())

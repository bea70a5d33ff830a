"""Runs the command line with `python -m composable_energy`: the script `composable-energy` of whatever package offers it."""

import sys
from importlib import metadata

_SCRIPT = "composable-energy"

if __name__ == "__main__":
    if (found := next(iter(metadata.entry_points(group="console_scripts", name=_SCRIPT)), None)) is None:
        sys.exit(f"No package offers the script {_SCRIPT}: install composable-energy, or run `pip install -e .` in the checkout.")
    sys.exit(found.load()())

"""Imports of packages that an optional extra installs."""

from __future__ import annotations

import importlib
from typing import Any

from composable_energy.errors import ExtraNotInstalled


def import_extra(module: str, extra: str) -> Any:
    """Imports a module of an extra, such as `metrics` of `pip install 'composable-energy[metrics]'`.

    Raises:
        ExtraNotInstalled: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExtraNotInstalled(
            f"This needs {module.partition('.')[0]}, which is not installed: pip install 'composable-energy[{extra}]'."
        ) from error

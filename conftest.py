"""Settings of all tests: one thread, a fixed seed before each test, no windows, what is quick or measured, and entry points for a checkout.

In a checkout that is not installed, tests find plug-ins by name as they do after `pip install -e .`.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

QUICK_CASES = 3  # of a test with many cases, so many are quick
MEASURED = ("tests/", *(f"plugins/{name}/tests/" for name in ("cli", "image", "mcmc", "training")))

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)
gc.set_threshold(50_000, 20, 20)  # by default the search for garbage takes a tenth of the time


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Makes a test without its own seed reproducible, also after `torch.compile`, which turns checks of distributions off."""
    torch.manual_seed(0)
    torch.distributions.Distribution.set_default_validate_args(True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `make test-fast` runs: no test that is slow or of the full suite, and of many cases of one test a few.

    Coverage is measured in some folders, and not in tests of the full suite: measuring takes a third longer, and these cover the code.
    """
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        measured = not item.get_closest_marker("full") and item.nodeid.startswith(MEASURED)
        if not measured and item.config.pluginmanager.hasplugin("_cov"):
            item.add_marker("no_cover")
        if not (item.get_closest_marker("slow") or item.get_closest_marker("full")):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for found in cases.values():
        last, most = len(found) - 1, min(len(found), QUICK_CASES)
        for i in {round(last * k / max(1, most - 1)) for k in range(most)}:
            found[i].add_marker("quick")


def pytest_collection_finish() -> None:
    """Leaves what is imported and collected out of the search for garbage, which would walk over it again and again."""
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Puts the metadata that an installation would have on the path, if there is none."""
    try:
        metadata.distribution("composable-energy")
    except metadata.PackageNotFoundError:
        folder = tempfile.TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        project = tomllib.loads((Path(__file__).parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        info = Path(folder.name) / f"composable_energy-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8")
        groups = (
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
            for group, entries in project["entry-points"].items()
        )
        (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
        sys.path.append(folder.name)

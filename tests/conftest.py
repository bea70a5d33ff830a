"""What all tests share: one thread, the same seed before each test, no window from matplotlib."""

import os

import pytest
import torch

from tests.strangers import acme, site  # noqa: F401  (fixtures: a folder on the path with and without a plug-in)

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test that draws without a seed of its own draws the same each time."""
    torch.manual_seed(0)

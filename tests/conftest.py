"""Settings of all tests: one thread, a fixed seed before each test, no matplotlib windows."""

import os

import pytest
import torch

# Fixtures of all tests.
from tests.factories import base  # noqa: F401
from tests.identity_energies import identity_registry  # noqa: F401
from tests.recorded_kernel import recorded  # noqa: F401
from tests.saving_energies import saving_registry  # noqa: F401
from tests.third_party import acme, site  # noqa: F401
from tests.toys import toys  # noqa: F401

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Makes a test without its own seed reproducible."""
    torch.manual_seed(0)

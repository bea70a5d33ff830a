"""Fixtures of the tests of the core."""

from tests.factories import base  # noqa: F401
from tests.recorded_kernel import force, recorded  # noqa: F401
from tests.saving_energies import saving_registry  # noqa: F401
from tests.third_party import acme, site, toys  # noqa: F401

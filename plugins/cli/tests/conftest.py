"""Fixtures of the tests of the command line."""

from tests.third_party import site  # noqa: F401
from tests.toys import toys  # noqa: F401

"""Fixtures of the tests of the command line."""

from tests.third_party import site, toys  # noqa: F401

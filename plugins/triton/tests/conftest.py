"""Fixtures of the tests."""

from tests.recorded_kernel import force  # noqa: F401

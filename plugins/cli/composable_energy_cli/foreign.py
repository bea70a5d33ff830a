"""Redirection of the output of third-party code."""

import contextlib
import sys
from collections.abc import Iterator

LIBRARY = "composable-energy"
"""The distribution of the library."""


@contextlib.contextmanager
def foreign_output() -> Iterator[None]:
    """Sends what third-party code prints to stderr, so that JSON on stdout stays whole."""
    with contextlib.redirect_stdout(sys.stderr):
        yield

"""Limits small operations to one thread.

The operations here take microseconds. With two threads an operation waits for the slower one; if another program occupies a core, that
takes several milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Sets the number of threads to one, and restores it on exit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""One thread for small operations.

An operation that two threads share ends when both are done. If another program holds the core of one of them, the other waits for the
scheduler's next turn, some milliseconds, at every operation; and the operations here take microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs operations on one thread meanwhile, and restores the number afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""The number of threads inside an operation while a call samples."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

__all__ = ["limited_threads"]

_INSIDE: ContextVar[bool] = ContextVar("inside", default=False)


class _Calls:
    """The calls of all threads that set the number at this moment, and what it was before the first of them."""

    lock = threading.Lock()
    running = 0
    before = 0


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Sets the threads inside an operation, which torch keeps for each thread, with one default for new threads.

    A thread that starts meanwhile takes over the number of the call, not the user's. So each call restores what was set before the first
    of several calls at once; a call inside another restores what that one set.

    Args:
        threads: The number; None leaves it alone.
    """
    if threads is None:
        yield
        return
    own, nested = torch.get_num_threads(), _INSIDE.get()
    token = _INSIDE.set(True)
    with _Calls.lock:
        _Calls.before = _Calls.before if _Calls.running else own
        _Calls.running += 1
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        with _Calls.lock:
            _Calls.running -= 1
            torch.set_num_threads(own if nested else _Calls.before)
        _INSIDE.reset(token)

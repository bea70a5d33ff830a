"""The context in which energies are evaluated while sampling: no gradients of parameters, and the recommended number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch

from composable_energy.energy import Energy
from composable_energy.sampling.selection import recommendations

_NESTED: ContextVar[bool] = ContextVar("nested", default=False)


class _Calls:
    """The calls of all Python threads that limit the threads of torch now, and the number before the first of them."""

    lock = threading.Lock()
    running = 0
    before = 0


@contextmanager
def evaluation_context(energy: Energy) -> Iterator[None]:
    """Switches off inference mode, autocast and gradients, and limits torch's threads to the fewest that a part of the energy recommends.

    Args:
        energy: The energy that is evaluated inside.
    """
    threads = min((advice.threads for _, advice in recommendations(energy) if advice.threads is not None), default=None)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda", "mps"):
            if _autocasts(kind):  # draws do not depend on it; an energy may switch it on inside
                stack.enter_context(torch.autocast(kind, enabled=False))
        if threads is None:
            yield
        else:
            with _limited_threads(threads):
                yield


def _autocasts(kind: str) -> bool:
    try:
        return torch.is_autocast_enabled(kind)
    except RuntimeError:  # torch 2.4 has no autocast on MPS
        return False


@contextmanager
def _limited_threads(threads: int) -> Iterator[None]:
    """Sets the number of threads inside an operation, which torch keeps per Python thread with one default for new threads.

    A Python thread that starts meanwhile inherits the number of the call, not the user's. So each call restores the number from before the
    first of several concurrent calls; a call inside another restores the number of the outer one.
    """
    own, nested = torch.get_num_threads(), _NESTED.get()
    token = _NESTED.set(True)
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
        _NESTED.reset(token)

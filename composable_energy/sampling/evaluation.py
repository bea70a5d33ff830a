"""Energies and gradients at points, of one energy or of several that share parts, and the context in which samplers evaluate them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from composable_energy.energies.conditions import rows_for
from composable_energy.energies.energy import Energy
from composable_energy.energies.evaluation import evaluating
from composable_energy.errors import ExpressionError
from composable_energy.sampling.selection import recommendations


def energy_and_gradient(energy: Energy, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
    r"""Returns energies, with shape $(B,)$, and $\nabla E$, with shape $(B, *)$, with one pass, and keeps no graph.

    Args:
        energy: The energy.
        x: The points, with shape $(B, *)$; they stay as they are.
        **conditions: Numbers, or tensors with one row for each point.

    Raises:
        ExpressionError: The energies have no gradient.
    """
    if not conditions:
        return energy.with_gradient(x)
    return energy.with_gradient(x, **{name: rows_for(name, value, x) for name, value in conditions.items()})


def energies_and_gradients(energies: Sequence[Energy], x: Tensor, **conditions: Any) -> list[tuple[Tensor, Tensor]]:
    r"""Returns energies and $\nabla E$ of several energies at the same points, as `energy_and_gradient` of each.

    Parts that they share, such as one network under several conditions, are evaluated once.

    Args:
        energies: The energies.
        x: The points, with shape $(B, *)$.
        **conditions: Numbers, or tensors with one row for each point; each energy takes those that it depends on.

    Raises:
        ExpressionError: An energy has no gradient.
    """
    rows, found = {name: rows_for(name, value, x) for name, value in conditions.items()}, []
    with torch.inference_mode(False), torch.enable_grad(), evaluating(root=_Together(energies)):
        point = x.clone() if x.is_inference() else x.detach()
        point.requires_grad_()
        for energy in energies:
            values = energy(point, **{name: row for name, row in rows.items() if name in energy.conditions})
            if not values.requires_grad:
                raise ExpressionError(f"{energy} has no gradient at its points: it is constant, or detaches them.")
            gradient = torch.autograd.grad(values.sum(), point, retain_graph=True)[0]
            values = values.detach()
            found.append((values if energy.has_value else torch.where(values.isfinite(), 0.0, values), gradient))
    return found


class _Together(Energy):
    """Energies that are evaluated at the same points."""

    has_value = False

    def __init__(self, energies: Sequence[Energy]) -> None:
        super().__init__()
        self.parts = tuple(energies)

    @property
    def terms(self) -> tuple[Energy, ...]:
        return self.parts

    def forward(self, x: Tensor) -> Tensor:
        raise ExpressionError("Energies that are evaluated together have no common value.")


class _Calls:
    """The Python threads whose calls limit the threads of torch now, and the number of these before the first call."""

    lock = threading.Lock()
    running: list[int] = []
    before = 0


@contextmanager
def evaluation_context(energy: Energy) -> Iterator[None]:
    """Switches off inference mode, autocast and gradients, and limits torch's threads to the fewest that a part of the energy recommends.

    Args:
        energy: The energy that is evaluated inside.
    """
    threads = [advice.threads for _, advice in recommendations(energy) if advice.threads is not None]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda", "mps"):  # draws do not depend on autocast; an energy may switch it on inside
            try:
                on = torch.is_autocast_enabled(kind)
            except RuntimeError:  # torch 2.4 has no autocast on MPS
                continue
            if on:
                stack.enter_context(torch.autocast(kind, enabled=False))
        if threads:
            stack.enter_context(_limited_threads(min(threads)))
        yield


@contextmanager
def _limited_threads(threads: int) -> Iterator[None]:
    """Sets the number of threads inside an operation, which torch keeps per Python thread with one default for new threads.

    A Python thread that starts meanwhile inherits the number of the call, not the user's. So each call restores the number from before the
    first of several concurrent calls; a call inside another restores the number of the outer one.
    """
    own, caller = torch.get_num_threads(), threading.get_ident()
    with _Calls.lock:
        _Calls.before = _Calls.before if _Calls.running else own
        nested = caller in _Calls.running
        _Calls.running.append(caller)
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        with _Calls.lock:
            _Calls.running.remove(caller)
            torch.set_num_threads(own if nested else _Calls.before)

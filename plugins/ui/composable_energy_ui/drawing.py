"""Drawing: carries out an order and reports what happens, step by step. It runs in the worker's process."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import ShapeError
from composable_energy.sampling import twin
from composable_energy_cli.names import read_expression
from composable_energy_cli.terms import at_level
from composable_energy_ui.orders import Order
from composable_energy_ui.results import density_image, grid_image, kind_of, numbers, summary_of, terms_of, traces_of
from composable_energy_ui.scripts import command_line, python_lines

if TYPE_CHECKING:
    from composable_energy import Energy
    from composable_energy.sampling import Info, State

__all__ = ["Report", "draw"]

Report = Callable[[dict[str, Any]], None]
_PAUSE = {"pictures": 0.25, "plane": 0.04, "numbers": 0.25}
_PATHS = 200


def draw(orders: Sequence[Order], start: np.ndarray | None, value_range: tuple[float, float], report: Report) -> None:
    """Draws the samples of the last order and reports `begun`, `progress`, `points` and `result`.

    Args:
        orders: The order, after those whose images it starts from.
        start: The point that its chains start from, for an edited image.
        value_range: The values of black and white.
        report: Called with each event.

    Raises:
        ComposableEnergyError: The expression cannot be built or sampled.
    """
    order, began = orders[-1], time.perf_counter()
    energies = [_energy(one) for one in orders]
    energy = energies[-1]
    view = _View(energy, value_range, report, order.steps or order.levels(energy))
    if view.kind == "plane":
        report({"kind": "density", **density_image(twin(energy))})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        points, trace = energy.sample(
            order.n,
            seed=order.seed,
            init=None if start is None else _start(order, energy, torch.from_numpy(start)),
            latents=True,
            trace=1 if view.kind == "plane" else True,
            callback=view.step,
            **order.options(energy),
        )
    report({"kind": "points", "points": points.numpy()})
    pictures = view.kind == "pictures"
    about = {"expression": str(energy), "seed": trace.seed, "sampler": repr(trace.sampler), "steps": trace.steps, "best_of": 1}
    shown = {"kind": "result", "view": view.kind, **about, **view.shown(points, about)}
    if view.kind == "plane" and trace.points is not None:
        shown["paths"] = _paths(trace.points)
    shown["terms"] = terms_of(twin(at_level(energy, None)).explain(points)) if energy.has_value else []
    shown |= {"trace": traces_of(trace), "summary": summary_of(trace), "warnings": [str(one.message) for one in caught]}
    shown |= {"command": command_line(order, energy, pictures), "python": python_lines(orders, energies)}
    report({**shown, "seconds": round(time.perf_counter() - began, 2)})


def _energy(order: Order) -> Energy:
    energy = read_expression(argparse.Namespace(expression=order.text, family=order.family, given=[]), untrained=False)
    return energy if order.sharpen == 1 else energy.sharpened(order.sharpen)


def _start(order: Order, energy: Energy, point: Tensor) -> Tensor:
    """Returns the starts of the chains: the point with noise of the order's strength, where the energy has noise levels."""
    if energy.event_shape is not None and point.shape != energy.event_shape:
        raise ShapeError(
            f"The image has points of shape {tuple(point.shape)}, and {energy} takes {tuple(energy.event_shape)}: edit it with names of "
            "its own family."
        )
    start = point.expand(order.n, *point.shape)
    if order.edit is None or "sigma" not in energy.conditions:
        return start.clone()
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(order.seed))
    return start + order.edit.strength * noise


class _View:
    """Shows points of an energy, and a few of the steps to them.

    Args:
        energy: The energy.
        value_range: The values of black and white.
        report: Called with each event.
        total: The number of steps; None if only the sampler knows it.
    """

    def __init__(self, energy: Energy, value_range: tuple[float, float], report: Report, total: int | None) -> None:
        self.total = total
        self.decoder = None if energy.decoder is None else twin(energy.decoder)
        self.value_range, self.report, self.last = value_range, report, 0.0
        if energy.event_shape is None:
            raise ShapeError(f"{energy} has no event_shape, so the playground cannot sample it; set it, or sample in Python.")
        self.kind = kind_of(tuple(self.visible(torch.zeros(1, *energy.event_shape)).shape[1:]))

    def visible(self, points: Tensor) -> Tensor:
        """Returns decoded points."""
        if self.decoder is None:
            return points
        with torch.no_grad():
            return self.decoder(points)

    def step(self, step: int, state: State, info: Info) -> None:
        """Reports a step, if the last report was some time ago."""
        if time.monotonic() - self.last < _PAUSE[self.kind]:
            return
        energy = state.energy.float()
        about = {"step": step, "total": self.total, "energy": numbers(energy.nanmean(), 2)}
        self.report({"kind": "progress", **about, **self.shown(state.x, {})})
        self.last = time.monotonic()

    def shown(self, points: Tensor, about: dict[str, Any]) -> dict[str, Any]:
        """Returns points as the page shows them."""
        if self.kind == "pictures":
            return grid_image(self.visible(points), self.value_range, about)
        return {"points": numbers(points.flatten(1)[:, :8], 3)}


def _paths(points: Tensor) -> list[Any]:
    """Returns the points of the chains at up to 200 steps, evenly spaced."""
    chosen = torch.linspace(0, len(points) - 1, min(len(points), _PATHS)).round().long().unique()
    return numbers(points[chosen], 3)

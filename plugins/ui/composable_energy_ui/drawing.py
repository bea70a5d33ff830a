"""Drawing: carries out an order and reports what happens, step by step. It runs in the worker's process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling import Observer, twin
from composable_energy_cli.names import build_energy, check_trained
from composable_energy_cli.terms import at_level, json_rows
from composable_energy_ui.orders import Order
from composable_energy_ui.results import density_image, grid_image, kind_of, numbers, spread, summary_of, traces_of
from composable_energy_ui.scripts import command_line, python_lines

Report = Callable[[dict[str, Any]], None]
_PAUSE = {"pictures": 0.25, "plane": 0.04, "numbers": 0.25}


def draw(orders: Sequence[Order], start: np.ndarray | None, value_range: tuple[float, float], report: Report) -> None:
    """Draws the samples of the last order and reports `conditions`, `density`, `tuning`, `progress`, `points`,
    `sampled` and `result`. It comes after the orders whose images it starts from; an edited image starts at a point.

    Raises:
        ComposableEnergyError: The expression cannot be built or sampled.
    """
    began = time.perf_counter()
    orders, energies = zip(*[_build(one, report) for one in orders], strict=True)
    order, energy = orders[-1], energies[-1]
    if (view := _View(energy, value_range, report)).kind == "plane":
        report({"kind": "density", **density_image(twin(energy))})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        points, trace = energy.latents.sample(
            order.n,
            seed=order.seed,
            init=None if start is None else _start(order, energy, torch.from_numpy(start)),
            trace=1 if view.kind == "plane" else True,
            observers=[view],
            **order.options(energy),
        )
    report({"kind": "points", "points": points.numpy()})
    report({"kind": "sampled"})
    pictures = view.kind == "pictures"
    about = {"expression": str(energy), "seed": trace.seed, "sampler": repr(trace.sampler), "steps": trace.steps}
    shown = {"kind": "result", "view": view.kind, **about, **view.shown(points, about)}
    if view.kind == "plane" and trace.points is not None:
        shown["paths"] = numbers(trace.points[spread(len(trace.points))], 3)
    shown["terms"] = numbers(json_rows(twin(at_level(energy, None)).explain(points))) if energy.has_value else []
    shown |= {"trace": traces_of(trace), "summary": summary_of(trace), "warnings": [str(one.message) for one in caught]}
    shown |= {"command": command_line(order, energy, pictures), "python": python_lines(orders, energies)}
    report({**shown, "seconds": round(time.perf_counter() - began, 2)})


def report_conditions(order: Order, report: Report) -> Energy:
    """Builds the energy of an order, and reports its conditions but the noise level, which samplers set."""
    energy = build_energy(order.text, order.family)
    names = sorted(energy.conditions - {"sigma", "chains"})
    report({"kind": "conditions", "conditions": [{"name": name, "required": name in energy.required_conditions} for name in names]})
    return energy


def _build(order: Order, report: Report) -> tuple[Order, Energy]:
    """Returns the energy of an order, and the order with the conditions that the energy has."""
    if not order.untrained:
        check_trained(order.text, order.family, 'check "Untrained networks"')
    energy = report_conditions(order, report)
    order = replace(order, given={name: text for name, text in order.given.items() if name in energy.conditions})
    if missing := sorted(energy.required_conditions - order.given.keys() - {"sigma"}):
        raise OptionError(f'The expression depends on {", ".join(missing)}: give it a value under "Conditions".')
    energy = energy.given(**order.conditions) if order.given else energy
    return order, energy if order.sharpen == 1 else energy.sharpened(order.sharpen)


def _start(order: Order, energy: Energy, point: Tensor) -> Tensor:
    """Returns the starts of the chains: the point with noise of the order's strength, where the energy has noise levels."""
    if energy.event_shape is not None and point.shape != energy.event_shape:
        raise ShapeError(f"{energy} takes {tuple(energy.event_shape)}, the image has {tuple(point.shape)}: edit it by names of its family.")
    start = point.expand(order.n, *point.shape)
    if order.edit is None or "sigma" not in energy.conditions:
        return start.clone()
    return start + order.edit.strength * torch.randn(start.shape, generator=torch.Generator().manual_seed(order.seed))


class _View(Observer):
    """Shows points of an energy, and a few of the steps to them."""

    def __init__(self, energy: Energy, value_range: tuple[float, float], report: Report) -> None:
        self.decoder = None if energy.decoder is None else twin(energy.decoder)
        self.value_range, self.report, self.last = value_range, report, 0.0
        if energy.event_shape is None:
            raise ShapeError(f"{energy} has no event_shape, so the playground cannot sample it; set it, or sample in Python.")
        self.kind = kind_of(tuple(self.visible(torch.zeros(1, *energy.event_shape)).shape[1:]))

    @torch.no_grad()
    def visible(self, points: Tensor) -> Tensor:
        return points if self.decoder is None else self.decoder(points)

    def on_tuning(self, sampler: Any, evaluations: int) -> None:
        """Reports the evaluations of the tuning, if the last report was some time ago."""
        if self._is_time():
            self.report({"kind": "tuning", "evaluations": evaluations})
            self.last = time.monotonic()

    def on_step(self, chains: Any, info: Any) -> None:
        """Reports the first step, and others if the last report was some time ago."""
        if chains.step == 1 or self._is_time():
            state = chains.visible_state()
            about = {"step": chains.step, "total": chains.last_step, "energy": numbers(state.energy.float().nanmean(), 2)}
            self.report({"kind": "progress", **about, **self.shown(state.x, {})})
            self.last = time.monotonic()

    def _is_time(self) -> bool:
        return time.monotonic() - self.last >= _PAUSE[self.kind]

    def shown(self, points: Tensor, about: dict[str, Any]) -> dict[str, Any]:
        """Returns points as the page shows them."""
        if self.kind == "pictures":
            return grid_image(self.visible(points), self.value_range, about)
        return {"points": numbers(points.flatten(1)[:, :8], 3)}

"""Traces for ArviZ, as `xarray.DataTree`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from composable_energy.errors import ShapeError
from composable_energy.options import import_extra
from composable_energy.sampling import Trace


def to_arviz(
    trace: Trace,
    name: str = "x",
    dims: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    log_likelihood: Callable[..., Tensor] | None = None,
) -> Any:
    """Returns an `xarray.DataTree`, the format of ArviZ since version 1; older versions convert it by `arviz.from_datatree`.

    Its group `posterior` has the recorded points with the axes (chain, draw, *), if there are some, and `sample_stats` the rest: `lp`,
    which is minus the energy, `diverging`, `acceptance_rate`, `step_size`, `n_steps` (leapfrogs) and other scalars of the sampler.
    Chains are labelled by their ids, draws by their steps.

    Args:
        trace: The record of a call of `sample`.
        name: The name of the points; named variables have their own.
        dims: The names of the axes of a point, such as `("channel", "row", "column")`, or a mapping from variables to those of their
            axes; numbered ones where there are none.
        coords: Labels for some of these axes, by name.
        log_likelihood: A function, as for `trace.predict`, that returns the log density of each observation, with shape $(B, N)$. It gives
            the group `log_likelihood`, which `arviz.loo` compares models by.

    Raises:
        ExtraNotInstalled: The extra `diagnostics` is not installed.
        ShapeError: Names or labels do not fit the points.
        OptionError: There is a `log_likelihood`, and no points were recorded.
    """
    xarray = import_extra("xarray", "diagnostics")
    record, steps = trace.to_dict(), trace.kept_steps
    stats, posterior = record["sample_stats"], record["posterior"]
    chains, draws = stats["lp"].shape
    axes = {"chain": np.arange(chains) + trace.first_chain, "draw": np.array(steps, dtype=np.int64)}
    groups = {}
    if posterior:
        arrays = posterior if trace.variables else {name: posterior["x"]}
        shapes = {name: array.shape[2:] for name, array in arrays.items()}
        given = dims if isinstance(dims, Mapping) else {} if dims is None else {name: dims}
        named = {name: list(given.get(name, [f"{name}_dim_{axis}" for axis in range(len(shape))])) for name, shape in shapes.items()}
        pairs = [(axis, size) for name, shape in shapes.items() for axis, size in zip(named[name], shape, strict=False)]
        sizes, own = dict(pairs), {axis: np.asarray(labels) for axis, labels in (coords or {}).items()}
        wrong = {axis: len(labels) for axis, labels in own.items() if len(labels) != sizes.get(axis)}
        each = all(len(named[name]) == len({*named[name]}) == len(shape) for name, shape in shapes.items())
        if not each or {"chain", "draw"} & sizes.keys() or {*pairs} != {*sizes.items()} or given.keys() - shapes.keys() or wrong:
            points = ", ".join(f"{key} {shape}" for key, shape in shapes.items()) if trace.variables else f"points of shape {shapes[name]}"
            raise ShapeError(
                f"`dims` names each axis of {points}, and `coords` labels each index of some of them; got dims={dims}"
                + (f" and, for {', '.join(wrong)}, {list(wrong.values())} labels." if wrong else ".")
            )
        indices = {dim: np.arange(size) for dim, size in sizes.items()}
        values = {name: (("chain", "draw", *named[name]), array) for name, array in arrays.items()}
        groups["posterior"] = xarray.Dataset(values, {**axes, **indices, **own})
    first, length = trace.steps - len(trace.energies) + 1, getattr(trace.sampler, "step_size", None)
    if isinstance(length, float):
        stats["step_size"] = np.full((chains, draws), length)
    for scalar, values in trace.scalars.items():
        if len(values) == len(trace.energies):
            row = np.array([values[step - first] for step in steps])
            stats["n_steps" if scalar == "leapfrogs" else scalar] = np.broadcast_to(row, (chains, draws))
    groups["sample_stats"] = xarray.Dataset({stat: (("chain", "draw"), values) for stat, values in stats.items()}, axes)
    if log_likelihood is not None:
        if (found := trace.predict(log_likelihood)).ndim != 3:
            raise ShapeError(f"log_likelihood returns shape (B, N) for N observations, got (B, {', '.join(map(str, found.shape[2:]))}).")
        groups["log_likelihood"] = xarray.Dataset({"y": (("chain", "draw", "observation"), found.transpose(0, 1).cpu().numpy())}, axes)
    tree = xarray.DataTree.from_dict(groups)
    for group in (tree, *tree.children.values()):
        group.attrs.update({"inference_library": "composable-energy", **record["attrs"]})
    return tree

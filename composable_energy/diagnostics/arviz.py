"""Export of traces to ArviZ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from composable_energy.errors import ShapeError
from composable_energy.options import import_extra

if TYPE_CHECKING:
    from composable_energy.sampling.trace import Trace


def to_arviz(trace: Trace, name: str, dims: Sequence[str] | None, coords: Mapping[str, Sequence[Any]] | None) -> Any:
    """Returns a trace as an xarray `DataTree`; see `Trace.to_arviz`."""
    xarray = import_extra("xarray", "diagnostics")
    record = trace.to_dict()
    stats, posterior = record["sample_stats"], record["posterior"]
    chains, draws = stats["lp"].shape
    steps = trace.kept_steps
    axes = {"chain": np.arange(chains) + trace.first_chain + trace.chains.start, "draw": np.array(steps, dtype=np.int64)}
    groups = {}
    if posterior:
        event = posterior["x"].shape[2:]
        dims = [f"{name}_dim_{axis}" for axis in range(len(event))] if dims is None else list(dims)
        sizes = dict(zip(dims, event, strict=False))
        wrong = {dim: len(labels) for dim, labels in (coords or {}).items() if len(labels) != sizes.get(dim)}
        if len(dims) != len(event) or len(sizes) < len(event) or {"chain", "draw"} & {*dims} or wrong:
            raise ShapeError(
                f"`dims` names each axis of points of shape {event}, and `coords` labels each index of some of them; got dims={dims}"
                + (f" and, for {', '.join(wrong)}, {list(wrong.values())} labels." if wrong else ".")
            )
        own = {dim: np.asarray(labels) for dim, labels in (coords or {}).items()}
        indices = {dim: np.arange(size) for dim, size in sizes.items()}
        groups["posterior"] = xarray.Dataset({name: (("chain", "draw", *dims), posterior["x"])}, {**axes, **indices, **own})
    stats = {**stats, **{stat: np.broadcast_to(values, (chains, draws)) for stat, values in _scalars(trace, steps).items()}}
    groups["sample_stats"] = xarray.Dataset({stat: (("chain", "draw"), values) for stat, values in stats.items()}, axes)
    tree = xarray.DataTree.from_dict(groups)
    about = {"inference_library": "composable-energy", **record["attrs"]}
    for group in (tree, *tree.children.values()):
        group.attrs.update(about)
    return tree


def _scalars(trace: Trace, steps: Sequence[int]) -> dict[str, Any]:
    """Returns the scalars of all chains, under ArviZ's names."""
    first = trace.steps - len(trace.energies) + 1
    found = {
        {"leapfrogs": "n_steps"}.get(name, name): np.array([values[step - first] for step in steps])
        for name, values in trace.scalars.items()
        if len(values) == len(trace.energies)
    }
    length = getattr(trace.sampler, "step_size", None)
    return {**({"step_size": length} if isinstance(length, float) else {}), **found}

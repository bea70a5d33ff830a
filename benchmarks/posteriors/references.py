"""Writes the references of the posteriors: `python -m benchmarks.posteriors.references [--rows NAME ...]`.

Closed forms and quadratures where there are some; else NUTS of NumPyro in float64, 4 chains of 10,000 draws after 2,000 of warm-up, in the
environment of `make bench-peers`. The files have means, standard deviations and quantiles of the statistics, with standard errors from
effective sample sizes, but no draws. Before it draws, the script compares the log densities in torch and in JAX at random points.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import environment, read_options
from benchmarks.posteriors.accuracy import Reference, least_effective, moments
from benchmarks.posteriors.target import ClosedForm, Target
from benchmarks.posteriors.targets import TARGETS, get_target

CHAINS, DRAWS, WARM_UP = 4, 10_000, 2_000
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
COMMAND = "python -m benchmarks.posteriors.references --rows {}"


def closed_reference(target: Target, known: ClosedForm) -> Reference:
    """Returns the reference of a target whose moments are known."""
    zeros = [0.0] * len(target.names)
    moments = (known.mean.tolist(), known.sd.tolist(), zeros, zeros, known.center.tolist(), known.scale.tolist())
    return Reference(target.name, list(target.names), *moments, known.source, about={"command": COMMAND.format(target.name)})


def nuts_reference(target: Target, acceptance: float) -> Reference:
    """Returns a reference by NUTS, of the target itself or of the one whose draws map to it."""
    from benchmarks.posteriors.peers import check_agreement, draw_nuts  # needs JAX

    drawn = get_target(target.reference) if target.reference else target
    agreement = {name: check_agreement(get_target(name)) for name in dict.fromkeys((drawn.name, target.name))}
    began = time.perf_counter()
    points, divergences = draw_nuts(drawn.name, drawn.dimension, CHAINS, DRAWS, WARM_UP, acceptance)
    seconds = time.perf_counter() - began
    flat = points.flatten(0, 1)
    flat = flat if target.from_reference is None else target.from_reference(flat)
    values, coordinates = (some.unflatten(0, points.shape[:2]) for some in (target.statistics(flat), flat))
    about: dict[str, Any] = environment("numpyro", "jax", "jaxlib", "numpy", command=COMMAND.format(target.name), seconds=round(seconds, 1))
    about |= {"chains": CHAINS, "draws": DRAWS, "warm_up": WARM_UP, "acceptance": acceptance, "drawn": drawn.name}
    about |= {"divergences": divergences, "r_hat": r_hat(values), "ess": least_effective(values), "torch_and_jax_differ": agreement}
    levels = torch.tensor(QUANTILES, dtype=torch.float64)
    quantiles = torch.stack([some.quantile(levels) for some in values.flatten(0, 1).T], 1)
    mean, sd, mean_error, sd_error = (some.tolist() for some in moments(values))
    center, scale = coordinates.mean((0, 1)).tolist(), coordinates.std((0, 1)).tolist()
    by_level = {str(level): row.tolist() for level, row in zip(QUANTILES, quantiles, strict=True)}
    source = "NUTS of NumPyro"
    return Reference(target.name, list(target.names), mean, sd, mean_error, sd_error, center, scale, source, by_level, about)


def r_hat(values: Tensor) -> float:
    """Returns the largest split R-hat of draws with shape (draws, chains, k)."""
    halves = torch.cat(values.chunk(2), 1)
    within, between = halves.var(0).mean(0), halves.mean(0).var(0)
    return float(((within * (1 - 1 / len(halves)) + between) / within).sqrt().max())


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(__doc__, None, arguments, rows=list(TARGETS), acceptance=0.95)
    for name in options.rows:
        target = get_target(name)
        if target.closed_form is None:
            reference = nuts_reference(target, options.acceptance)
        else:
            reference = closed_reference(target, target.closed_form())
        reference.write()
        print(name, {key: reference.about[key] for key in ("seconds", "divergences", "r_hat", "ess") if key in reference.about}, flush=True)


if __name__ == "__main__":
    main()

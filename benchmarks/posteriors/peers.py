"""NumPyro's NUTS and BlackJAX' ChEES on the targets, with JAX on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from numpyro.infer import MCMC, NUTS
from torch import Tensor

from benchmarks.posteriors.accuracy import Reference
from benchmarks.posteriors.jax_densities import jax_density
from benchmarks.posteriors.target import Target

__all__ = ["check_agreement", "draw_nuts", "measure_peers"]

NUTS_CHAINS, NUTS_WARM_UP, NUTS_DRAWS = 4, 1000, 1000  # as NumPyro's examples
CHEES_CHAINS, CHEES_WARM_UP, CHEES_DRAWS = 64, 1000, 100  # the draws of this library's default
Figures = dict[str, Any]
TOLERANCE = 1e-5
WORTH_COMPILING = 5000  # draws above which compilation does not matter


def check_agreement(target: Target) -> float:
    """Returns the largest relative difference of the log densities in torch and in JAX at random points, both in float64.

    Raises:
        ValueError: It exceeds 1e-5.
    """
    points = np.random.RandomState(0).randn(200, target.dimension)
    with jax.enable_x64(True):
        there = np.asarray(jax.vmap(jax_density(target.name))(jnp.asarray(points)))
    here = target.log_density(torch.from_numpy(points)).numpy()
    offset = here[0] - there[0]  # a constant may differ
    difference = float(np.max(np.abs(here - there - offset) / np.maximum(np.abs(here), 1.0)))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"The log densities of {target.name} in torch and in JAX differ by {difference:.2g}, relative; at most {TOLERANCE}."
        )
    return difference


def draw_nuts(name: str, size: int, chains: int, draws: int, warm_up: int, acceptance: float) -> tuple[Tensor, int]:
    """Returns draws of NUTS in float64 with shape (draws, chains, d), and the number of divergent transitions among them."""
    with jax.enable_x64(True):
        run = _nuts(name, size, chains, draws, warm_up, 0, acceptance)
    return run.points, run.divergences


def measure_peers(target: Target, reference: Reference, seed: int, figures: Callable[..., Figures]) -> Iterator[Figures]:
    """Yields the rows of both samplers, in float32 as this library's default.

    Args:
        target: The target.
        reference: The truth.
        seed: The seed.
        figures: Returns the figures of a row, as `run.figures`.
    """
    for title in ("NumPyro NUTS", "BlackJAX ChEES"):
        if title == "NumPyro NUTS":
            run = _nuts(target.name, target.dimension, NUTS_CHAINS, NUTS_DRAWS, NUTS_WARM_UP, seed, 0.8)
        else:
            run = _chees(target.name, target.dimension, seed)
        values = target.statistics(run.points.flatten(0, 1)).unflatten(0, run.points.shape[:2])
        found = figures(values, reference, run.tuning + run.recorded, run.recorded, run.seconds)
        yield {"row": target.name, "sampler": title, "seed": seed, "start": "default", "draws": len(values), **found, "warnings": []}


@dataclass(frozen=True)
class _Run:
    """Draws with shape (draws, chains, d), gradients of warm-up and draws, divergent transitions, and processor seconds."""

    points: Tensor
    tuning: int
    recorded: int
    divergences: int
    seconds: float


def _nuts(name: str, size: int, chains: int, draws: int, warm_up: int, seed: int, acceptance: float) -> _Run:
    """Runs chains in turns. The first is run twice, and timed without compilation."""
    density = jax_density(name)
    kernel = NUTS(potential_fn=lambda x: -density(x), target_accept_prob=acceptance)
    mcmc = MCMC(kernel, num_warmup=warm_up, num_samples=draws, progress_bar=False)
    starts, fields = jax.random.normal(jax.random.key(seed), (chains, size)), ("num_steps", "diverging")
    points, counts = [], [0, 0, 0]
    began = 0.0
    for chain in range(-1 if draws < WORTH_COMPILING else 0, chains):
        if chain <= 0:
            began, points, counts = time.process_time(), [], [0, 0, 0]
        mcmc.warmup(jax.random.PRNGKey(100 * seed + chain), init_params=starts[chain], extra_fields=fields, collect_warmup=True)
        counts[0] += int(mcmc.get_extra_fields()["num_steps"].sum())
        mcmc.run(jax.random.PRNGKey(100 * seed + chain + 50), extra_fields=fields)
        counts[1] += int(mcmc.get_extra_fields()["num_steps"].sum())
        counts[2] += int(mcmc.get_extra_fields()["diverging"].sum())
        points.append(torch.from_numpy(np.array(mcmc.get_samples(), dtype=np.float64)))
    return _Run(torch.stack(points, 1), *counts, time.process_time() - began)


def _chees(name: str, size: int, seed: int) -> _Run:
    density = jax_density(name)
    begin, tune, go = jax.random.split(jax.random.key(seed), 3)
    start = jax.random.normal(begin, (CHEES_CHAINS, size))
    adaptation = blackjax.chees_adaptation(density, CHEES_CHAINS)

    def run(start: Any, tune: Any, go: Any) -> tuple[Any, Any, Any]:
        (states, parameters), info = adaptation.run(tune, start, 0.1, optax.adam(0.025), CHEES_WARM_UP)
        kernel = blackjax.dynamic_hmc(density, **parameters).step

        def one(states: Any, key: Any) -> tuple[Any, tuple[Any, Any]]:
            states, info = jax.vmap(kernel)(jax.random.split(key, CHEES_CHAINS), states)
            return states, (states.position, info.num_integration_steps)

        _, (points, leapfrogs) = jax.lax.scan(one, states, jax.random.split(go, CHEES_DRAWS))
        return points, leapfrogs, info.info.num_integration_steps

    compiled = jax.jit(run).lower(start, tune, go).compile()
    began = time.process_time()
    points, leapfrogs, tuning = jax.block_until_ready(compiled(start, tune, go))
    seconds = time.process_time() - began
    return _Run(torch.from_numpy(np.array(points, dtype=np.float64)), int(tuning.sum()), int(leapfrogs.sum()), 0, seconds)

"""NumPyro's NUTS and BlackJAX' ChEES on the targets, with JAX on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
        mcmc, _, _ = _nuts(name, size, chains, draws, warm_up, 0, acceptance)
        points = np.array(mcmc.get_samples(group_by_chain=True), dtype=np.float64)
        return torch.from_numpy(points).transpose(0, 1).contiguous(), int(mcmc.get_extra_fields()["diverging"].sum())


def measure_peers(target: Target, reference: Reference, seed: int, figures: Callable[..., Figures]) -> Iterator[Figures]:
    """Yields the rows of both samplers, in float32 as this library's default.

    Args:
        target: The target.
        reference: The truth.
        seed: The seed.
        figures: Returns the figures of a row, as `run.figures`.
    """
    for title, draw in (("NumPyro NUTS", _measured_nuts), ("BlackJAX ChEES", _measured_chees)):
        points, tuning, recorded, seconds = draw(target, seed)
        values = target.statistics(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        found = figures(values, reference, tuning + recorded, recorded, seconds)
        yield {"row": target.name, "sampler": title, "seed": seed, "start": "default", "draws": len(values), **found, "warnings": []}


def _nuts(name: str, size: int, chains: int, draws: int, warm_up: int, seed: int, acceptance: float) -> tuple[Any, int, float]:
    """Returns the run, the gradients of the warm-up, and the processor seconds without compilation."""
    density = jax_density(name)
    kernel = NUTS(potential_fn=lambda x: -density(x), target_accept_prob=acceptance)
    mcmc = MCMC(kernel, num_warmup=warm_up, num_samples=draws, num_chains=chains, chain_method="vectorized", progress_bar=False)
    start = jax.random.normal(jax.random.key(seed + 1), (chains, size))
    fields = ("num_steps", "diverging")
    mcmc.warmup(jax.random.PRNGKey(seed), init_params=start, extra_fields=fields, collect_warmup=True)  # compiles
    mcmc._last_state = mcmc._warmup_state = None
    began = time.process_time()
    mcmc.warmup(jax.random.PRNGKey(seed), init_params=start, extra_fields=fields, collect_warmup=True)
    gradients = int(mcmc.get_extra_fields()["num_steps"].sum())
    mcmc.run(mcmc.post_warmup_state.rng_key, extra_fields=fields)
    jax.block_until_ready(mcmc.get_samples())
    return mcmc, gradients, time.process_time() - began


def _measured_nuts(target: Target, seed: int) -> tuple[Tensor, int, int, float]:
    mcmc, tuning, seconds = _nuts(target.name, target.dimension, NUTS_CHAINS, NUTS_DRAWS, NUTS_WARM_UP, seed, 0.8)
    points = np.array(mcmc.get_samples(group_by_chain=True), dtype=np.float64)
    recorded = int(mcmc.get_extra_fields()["num_steps"].sum())
    return torch.from_numpy(points).transpose(0, 1).contiguous(), tuning, recorded, seconds


def _measured_chees(target: Target, seed: int) -> tuple[Tensor, int, int, float]:
    density = jax_density(target.name)
    begin, tune, go = jax.random.split(jax.random.key(seed), 3)
    start = jax.random.normal(begin, (CHEES_CHAINS, target.dimension))
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
    return torch.from_numpy(np.array(points, dtype=np.float64)), int(tuning.sum()), int(leapfrogs.sum()), seconds

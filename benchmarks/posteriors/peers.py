"""NumPyro's NUTS and BlackJAX' ChEES on the targets, with JAX on the CPU."""

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
from numpyro.infer.hmc import hmc
from torch import Tensor

from benchmarks.posteriors.accuracy import NUTS, Reference
from benchmarks.posteriors.jax_densities import jax_density
from benchmarks.posteriors.target import Target

NUTS_CHAINS, NUTS_WARM_UP, NUTS_DRAWS = 4, 1000, 1000  # as NumPyro's examples
CHEES_CHAINS, CHEES_WARM_UP, CHEES_DRAWS = 64, 1000, 100  # the draws of this library's default
Figures = dict[str, Any]
TOLERANCE = 1e-5


def check_agreement(target: Target) -> float:
    """Returns the largest relative difference of the log densities in torch and in JAX at random points, both in float64."""
    points = np.random.RandomState(0).randn(200, target.dimension)
    with jax.enable_x64(True):
        there = np.asarray(jax.vmap(jax_density(target.name))(jnp.asarray(points)))
    here = target.log_density(torch.from_numpy(points)).numpy()
    offset = here[0] - there[0]  # a constant may differ
    difference = float(np.max(np.abs(here - there - offset) / np.maximum(np.abs(here), 1.0)))
    if not difference <= TOLERANCE:
        raise ValueError(f"Log densities of {target.name} in torch and in JAX differ by {difference:.2g}, relative; at most {TOLERANCE}.")
    return difference


def draw_nuts(name: str, size: int, chains: int, draws: int, warm_up: int, acceptance: float) -> tuple[Tensor, int]:
    """Returns draws of NUTS in float64 with shape (draws, chains, d), and the number of divergent transitions among them."""
    with jax.enable_x64(True):
        run = _nuts(name, size, chains, draws, warm_up, 0, acceptance)
    return run.points, run.divergences


def measure_peers(target: Target, reference: Reference, seed: int, figures: Callable[..., Figures]) -> Iterator[Figures]:
    """Yields the rows of both samplers, in float32 as this library's default."""
    for title in (NUTS, "BlackJAX ChEES"):
        if title == NUTS:
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
    """Runs chains in sequence, by the functions of NumPyro's kernel, so that compilation can be left out of the time."""
    density = jax_density(name)
    begin, go = jax.random.split(jax.random.key(seed))
    starts, keys = jax.random.normal(begin, (chains, size)), jax.random.split(go, chains)
    init, step = hmc(lambda x: -density(x), algo="NUTS")

    def chain(start_and_key: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        start, key = start_and_key
        state = init(start, warm_up, step_size=1.0, target_accept_prob=acceptance, rng_key=key)

        def one(state: Any, _: None) -> tuple[Any, tuple[Any, Any, Any]]:
            state = step(state)
            return state, (state.z, state.num_steps, state.diverging)

        return jax.lax.scan(one, state, None, warm_up + draws)[1]

    compiled = jax.jit(lambda starts, keys: jax.lax.map(chain, (starts, keys))).lower(starts, keys).compile()
    began = time.process_time()
    points, counts, diverging = (np.asarray(some) for some in jax.block_until_ready(compiled(starts, keys)))
    seconds = time.process_time() - began
    found = torch.from_numpy(points[:, warm_up:].astype(np.float64)).transpose(0, 1).contiguous()
    return _Run(found, int(counts[:, :warm_up].sum()), int(counts[:, warm_up:].sum()), int(diverging[:, warm_up:].sum()), seconds)


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

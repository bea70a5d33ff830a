"""BlackJAX in the comparison of quality: ChEES and NUTS, compiled, on JAX's CPU backend."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

from benchmarks.energies import cost_figures

Array = Any
Density = Callable[[Array], Array]  # the log density at one point
_CHEES_TUNING, _NUTS_TUNING = 2000, 500


def gaussian(precision: np.ndarray) -> Density:
    matrix = jnp.asarray(precision)
    return lambda x: -(x @ matrix @ x) / 2


def banana(x: Array) -> Array:
    return -(x[0] ** 2 / 2 + 2 * (x[1] - x[0] ** 2) ** 2)


def network(formula: nn.Module, scale: float) -> Density:
    """The same perceptron, with the same weights."""
    layers = [_weights(m) for m in formula.modules() if isinstance(m, nn.Linear)]

    def log_density(x: Array) -> Array:
        y = x
        for weight, bias in layers[:-1]:
            y = jax.nn.silu(weight @ y + bias)
        weight, bias = layers[-1]
        return -(scale * (weight @ y + bias)[0] + (x @ x) / 2)

    return log_density


def pictures(formula: nn.Module, scale: float) -> Density:
    """The same convolutions, with the same weights."""
    layers = [(*_weights(m), m.stride) for m in formula.modules() if isinstance(m, nn.Conv2d)]
    (weight_of_all, bias_of_all) = next(_weights(m) for m in formula.modules() if isinstance(m, nn.Linear))

    def log_density(x: Array) -> Array:
        y = x.reshape(1, 3, 8, 8)
        for weight, bias, stride in layers:
            y = jax.nn.silu(jax.lax.conv_general_dilated(y, weight, stride, [(1, 1), (1, 1)]) + bias[:, None, None])
        return -(scale * (weight_of_all @ y.reshape(-1) + bias_of_all)[0] + (x @ x) / 2)

    return log_density


def _weights(layer: nn.Module) -> tuple[Array, Array]:
    return jnp.asarray(layer.weight.detach().numpy()), jnp.asarray(layer.bias.detach().numpy())  # pyright: ignore


def samplers(log_density: Density, chains: int, size: int, draws: int) -> Iterator[tuple[str, Any]]:
    """Yields samplers by name, as functions of a seed that return figures."""
    yield "BlackJAX ChEES", lambda seed: _chees(log_density, chains, size, draws, seed)
    yield "BlackJAX NUTS", lambda seed: _nuts(log_density, chains, size, draws // 4, seed)


def _chees(log_density: Density, chains: int, size: int, draws: int, seed: int) -> dict[str, Any]:
    begin, tune, go = jax.random.split(jax.random.key(seed), 3)
    start = jax.random.normal(begin, (chains, size))
    tuning = blackjax.chees_adaptation(log_density, chains, target_acceptance_rate=0.651)
    (states, parameters), _ = tuning.run(tune, start, 0.1, optax.adam(0.025), _CHEES_TUNING)
    kernel = blackjax.dynamic_hmc(log_density, **parameters).step
    return _record(kernel, states, go, chains, draws)


def _nuts(log_density: Density, chains: int, size: int, draws: int, seed: int) -> dict[str, Any]:
    begin, tune, go = jax.random.split(jax.random.key(seed), 3)
    start = jax.random.normal(begin, (chains, size))
    (_, parameters), _ = blackjax.window_adaptation(blackjax.nuts, log_density).run(tune, start[0], _NUTS_TUNING)
    algorithm = blackjax.nuts(log_density, **parameters)
    states, _, _ = _scan(algorithm.step, jax.vmap(algorithm.init)(start), begin, chains, 100)
    return _record(algorithm.step, states, go, chains, draws)


def _scan(kernel: Any, states: Any, key: Array, chains: int, draws: int) -> tuple[Any, Array, Array]:
    def one(states: Any, key: Array) -> tuple[Any, tuple[Array, Array]]:
        states, info = jax.vmap(kernel)(jax.random.split(key, chains), states)
        return states, (states.position, info.num_integration_steps)

    states, (points, leapfrogs) = jax.lax.scan(one, states, jax.random.split(key, draws))
    return states, points, leapfrogs


def _record(kernel: Any, states: Any, key: Array, chains: int, draws: int) -> dict[str, Any]:
    run = jax.jit(lambda states, key: _scan(kernel, states, key, chains, draws)).lower(states, key).compile()
    began = time.process_time()
    _, points, leapfrogs = jax.block_until_ready(run(states, key))
    seconds = time.process_time() - began
    return cost_figures(torch.from_numpy(np.array(points)), seconds, float(leapfrogs.mean()))

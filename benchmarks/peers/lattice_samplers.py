"""Chains of the Ising model by THRML and by ebmkit: generators of points with shape (draws, chains, L, L), processor seconds and sweeps."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

Part = tuple[Tensor, float, float]


def thrml(size: int, coupling: float, chains: int, sweeps: int, every: int) -> Iterator[Part]:
    """Sweeps of a checkerboard, compiled as a whole, from random spins."""
    import jax
    import jax.numpy as jnp
    from thrml import Block, SamplingSchedule, SpinNode, sample_states
    from thrml.models import IsingEBM, IsingSamplingProgram

    nodes = [[SpinNode() for _ in range(size)] for _ in range(size)]
    flat = [node for row in nodes for node in row]
    edges = [(nodes[i][j], other) for i in range(size) for j in range(size) for other in (nodes[i - 1][j], nodes[i][j - 1])]
    model = IsingEBM(flat, edges, jnp.zeros(len(flat)), jnp.full(len(edges), coupling), jnp.array(1.0))
    places = [np.array([i * size + j for i in range(size) for j in range(size) if (i + j) % 2 == color]) for color in (0, 1)]
    program = IsingSamplingProgram(model, [Block([flat[i] for i in some]) for some in places], clamped_blocks=[])
    schedule = SamplingSchedule(n_warmup=every, n_samples=sweeps // every, steps_per_sample=every)

    def run(points: Any, keys: Any) -> Any:
        start = [points[:, some] for some in places]
        return jax.vmap(lambda one, key: sample_states(key, program, schedule, one, [], [Block(flat)])[0])(start, keys)

    key, start = jax.random.split(jax.random.key(0))
    points = jax.random.bernoulli(start, 0.5, (chains, len(flat)))
    compiled = jax.jit(run).lower(points, jax.random.split(key, chains)).compile()
    while True:
        key, now = jax.random.split(key)
        began = time.process_time()
        found = jax.block_until_ready(compiled(points, jax.random.split(now, chains)))
        seconds, points = time.process_time() - began, found[:, -1]
        yield torch.from_numpy(np.array(found)).transpose(0, 1).unflatten(2, (size, size)).float(), seconds, sweeps


def ebmkit(coupling: float, start: Tensor, sweeps: int, draws: int) -> Iterator[Part]:
    """Gibbs with gradients, its only sampler of a lattice, of a compiled energy; as many steps as there are sites count as a sweep."""
    from ebm.samplers import GibbsWithGradients

    def energy(x: Tensor) -> Tensor:
        spins = 2 * x - 1
        return -coupling * (spins * (torch.roll(spins, 1, 1) + torch.roll(spins, 1, 2))).sum((1, 2))

    compiled, sampler, x = torch.compile(energy, dynamic=False), GibbsWithGradients(), start
    sampler.sample(compiled, x, steps=2)
    while True:
        found, began = [], time.process_time()
        for _ in range(draws):
            x = sampler.sample(compiled, x, steps=sweeps * start[0].numel() // draws)
            found.append(x)
        yield torch.stack(found), time.process_time() - began, sweeps

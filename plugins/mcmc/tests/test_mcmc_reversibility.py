"""Reversibility: reversed trajectories return to their start, steps obey detailed balance, and gradients of a step are counted."""

import pytest
import torch
from scipy import stats

import composable_energy as ce
from composable_energy.sampling import Noise
from composable_energy_mcmc import HMC, MALA, ChEES, Langevin, Underdamped

F64 = torch.float64


SKEWED = ce.as_energy(lambda x: x[:, 0] ** 4 / 4 - x[:, 0] ** 2 / 2 - x[:, 0] / 2)  # two modes of different depth


def p_of_balance(sampler, step) -> float:
    """Of as many moves there as back between any two of twelve bins, from exact draws; by chi squared."""
    n, axis = 100_000, torch.linspace(-4, 4, 200_001, dtype=F64)
    below = torch.softmax(-SKEWED(axis[:, None]), 0).cumsum(0)
    place = torch.special.ndtr(Noise(9, range(n)).normal(torch.zeros(n, dtype=F64)))
    x = axis[torch.searchsorted(below, place).clamp(max=len(axis) - 1)][:, None]
    noise = Noise(3, range(n), step=step)
    with torch.no_grad():
        after, _ = sampler.step(SKEWED, sampler.init(SKEWED, x, noise.at(0)), noise)
    edges = torch.quantile(x[:10_000, 0], torch.linspace(0, 1, 13, dtype=F64)[1:-1])
    here, there = torch.bucketize(x[:, 0].contiguous(), edges), torch.bucketize(after.x[:, 0].contiguous(), edges)
    moves = torch.bincount(12 * here + there, minlength=144).view(12, 12).double()
    both = moves + moves.T
    used = (both > 20).triu(1)
    return float(stats.chi2.sf(float(((moves - moves.T).square() / both)[used].sum()), int(used.sum())))


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 7])
@pytest.mark.parametrize("sampler", [MALA(0.3), MALA(1.0), HMC(0.3, 8), HMC(0.6, 4, jitter=False), ChEES(0.4, 2.0)], ids=repr)
def test_as_many_chains_go_back_as_there(sampler, step):
    assert p_of_balance(sampler, step) > 1e-5


COUNTED = [Langevin(0.1), MALA(0.3), Underdamped(0.2), HMC(0.3, 7), HMC(0.3, 7, jitter=False), ChEES(0.2, 1.5)]


@pytest.mark.parametrize("sampler", COUNTED, ids=repr)
def test_a_step_takes_one_gradient_and_a_trajectory_one_for_each_leapfrog(sampler):
    """And one at the start, with a trace, a callback and chunks as well; two energies beside it compare a point with copies of itself."""
    sizes = []
    energy = ce.as_energy(lambda x: sizes.append(len(x)) or x.square().sum(1) / 2)
    _, trace = energy.sample((6, 2), sampler=sampler, steps=32, seed=0, trace=1, observers=[ce.sampling.Stop(lambda *_: None)])
    leapfrogs = trace.scalars.get("leapfrogs", [1] * 32)
    assert sizes == [6] * (2 + 1 + sum(leapfrogs))
    if isinstance(sampler, HMC):
        assert max(leapfrogs) == 7 and sum(leapfrogs) <= 32 * 7
    sizes.clear()
    energy.sample((6, 2), sampler=sampler, steps=32, seed=0, batch_size=2)
    assert sizes == [2] * (2 + 3 * (1 + sum(leapfrogs)))

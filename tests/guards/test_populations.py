"""Samplers of many points that lose modes on their way say so: `smc` by families of ancestors, `tempering` by trips from the base."""

import math
import re
import warnings

import pytest
import torch
from torch.distributions import Normal

import composable_energy as ce
from composable_energy import SamplingWarning


def mixture(means, sds, weights, axes: int) -> ce.Energy:
    """Returns a mixture as one function, whose branches no structure shows."""

    def energy(x):
        parts = [Normal(m, s).log_prob(x).sum(1) + math.log(w) for m, s, w in zip(means, sds, weights, strict=True)]
        return -torch.logsumexp(torch.stack(parts), 0)

    return ce.as_energy(energy, event_shape=(axes,))


FAR = mixture((10.0, -10.0), (1.0, 1.0), (0.7, 0.3), 10)
NARROW_AND_WIDE = mixture((-5.0, 5.0), (0.1, 2.0), (0.6, 0.4), 1)


@pytest.mark.full
@pytest.mark.parametrize("energy", [FAR, NARROW_AND_WIDE])
def test_smc_warns_where_few_families_survive(energy):
    with pytest.warns(SamplingWarning, match=r"families: The 1000 points descend from \d+ draws"):
        energy.sample(1000, sampler="smc", mean=0.0, scale=10.0, seed=21)  # a base over both modes


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")  # of few families and trips: here the modes count
@pytest.mark.parametrize(("name", "far", "axes"), [("smc", 8.0, 10), ("tempering", 15.0, 4)])
def test_pilots_find_far_modes(name, far, axes):
    points = mixture((0.0, far), (1.0, 1.0), (0.5, 0.5), axes).sample(400, sampler=name, seed=21)
    assert 0.05 < (points.mean(1) > far / 2).double().mean().item() < 0.95


@pytest.mark.full
def test_smc_warns_of_branches_that_no_ancestor_found():
    narrow, wide = (ce.as_energy(Normal(torch.full((10,), mean), sd)) for mean, sd in ((-5.0, 0.1), (5.0, 2.0)))
    with pytest.warns(SamplingWarning, match="branch"):
        ce.any_of(narrow, wide, weights=[0.6, 0.4]).sample(1000, sampler="smc", seed=21)


@pytest.mark.full
def test_smc_is_silent_where_relatives_separate():
    modes = mixture((3.0, -3.0), (1.0, 1.0), (0.7, 0.3), 2)
    wide = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(32,))  # of 1,000 points, families are worth about 240
    for energy in (modes, wide):
        points = energy.sample(1000, sampler="smc", seed=22)  # warnings are errors
    assert points.var().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.full
def test_tempering_warns_while_points_descend_from_the_start():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FAR.sample(64, sampler="tempering", seed=21)
    assert any(re.match("trips: The points of .* of the chains still descend from the start", str(w.message)) for w in caught)
    points = mixture((3.0, -3.0), (1.0, 1.0), (0.7, 0.3), 2).sample(400, sampler="tempering", steps=100, seed=21)  # no warning
    assert abs((points[:, 0] > 0).double().mean().item() - 0.7) < 4.5 * math.sqrt(0.21 / 400)

"""The README's sentences are true as they stand; each test quotes the sentence that it checks."""

import math
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy.errors import MixtureWarning

README = " ".join((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split())


def normal(mean: float, sd: float) -> ce.Energy:
    return ce.as_energy(Normal(torch.tensor([mean]), sd))


def function(mean: float, sd: float) -> ce.Energy:
    return ce.as_energy(lambda x: ((x - mean) / sd).square().sum(1) / 2, event_shape=(1,))


@pytest.mark.full
def test_mixtures_say_what_their_shares_are():
    assert "**Mixtures say what their shares are**: exact, known, calibrated, chosen or unknown." in README
    logits, base = (lambda x: torch.cat([x, -x], 1)), normal(0.0, 1.0)
    red, blue = (ce.ClassifierEnergy(logits, label, base, labels=2) for label in (0, 1))
    arbitrary = function(0.0, 1.0) | function(3.0, 2.0)
    found = [(red | blue).shares, (normal(0.0, 1.0) | normal(3.0, 1.0)).shares, ce.calibrate(arbitrary, seed=0).shares, arbitrary.shares]
    chosen = ce.any_of(function(0.0, 1.0), function(3.0, 2.0), weights=[0.6, 0.4])
    assert [*found, chosen.shares] == ["exact", "known", "calibrated", "unknown", "chosen"]
    assert "arbitrary" in str(arbitrary.explain(torch.zeros(1, 1)))
    with pytest.warns(MixtureWarning, match="unknown normalisers"):
        arbitrary.sample(20, sampler="mala", step_size=0.5, steps=2, seed=0)


@pytest.mark.full
def test_chains_start_in_the_branches_by_shares_that_are_known_and_sample_warns_of_others():
    assert "Chains start in the branches by shares that are known, and `sample` warns of others" in README
    for mixture, share in (
        (ce.any_of(normal(-1.0, 1.0), normal(10.0, 0.5), weights=[0.2, 0.8]), 0.8),
        (normal(-1.0, 1.0) | normal(10.0, 0.5), 0.5),
        (ce.calibrate(ce.any_of(function(-1.0, 1.0), function(10.0, 0.5), weights=[0.6, 0.4]), seed=0), 0.4),
    ):
        points = mixture.sample(2000, seed=31)  # by the default sampler, without a warning
        assert abs((points > 5).double().mean().item() - share) < 4.5 * math.sqrt(share * (1 - share) / 2000)
        with pytest.warns(SamplingWarning, match="branch: The points do not have the shares"):
            mixture.sample(200, sampler="mala", steps=50, seed=31, init=torch.zeros(200, 1))


@pytest.mark.full
def test_calibrate_estimates_log_z_of_each_branch_where_it_is_not_known():
    assert "`ce.calibrate(A | B)` estimates $\\log Z$ of each branch where it is not known." in README
    log_z = [math.log(sd * math.sqrt(2 * math.pi)) for sd in (0.5, 2.0)]
    assert ce.calibrate(function(0.0, 0.5) | function(1.0, 2.0), seed=0).log_z == pytest.approx(log_z, abs=0.1)
    assert ce.calibrate(normal(0.0, 0.5) | function(1.0, 2.0), seed=0).log_z == pytest.approx([0.0, log_z[1]], abs=0.1)
    either, x = normal(0.0, 0.5) ^ normal(1.0, 2.0), torch.linspace(-4, 4, 9)[:, None]
    torch.testing.assert_close(ce.calibrate(either, seed=0)(x), either(x))

"""The sampler `mixture`: draws of events over a mixture of codes have their density, and other expressions are drawn along noise levels."""

import pytest
import torch
from scipy import stats
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import ExpressionError
from composable_energy_image import CodeEnergy, MixtureDraws, MixtureHeads
from tests.refusals import refused

WEIGHTS = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
CENTRES = torch.tensor([[0.0, 0.0, 0.0], [1.5, 0.0, 1.0], [0.0, 2.0, -1.0], [1.5, 2.0, 0.0]], dtype=torch.float64)
SPREADS = torch.tensor([[1.0, 0.5, 0.7], [0.6, 0.6, 1.0], [0.5, 1.0, 0.5], [0.7, 0.4, 0.6]], dtype=torch.float64)
LEVEL = 0.05
DRAWS = 4000


@pytest.fixture(scope="module")
def energies() -> tuple[ce.Energy, ce.Energy, ce.Energy]:
    """A base of four Gaussians of three numbers, the events `even` of the first and third, and `late` of the third and fourth."""
    base = CodeEnergy(size=16, code=3, components=4).double()
    heads = MixtureHeads(4, code=3, components=4).double()
    for mixture in (base.net, heads.mixture):
        mixture.log_weights.copy_(WEIGHTS.log())
        mixture.means.copy_(CENTRES)
        mixture.variances.copy_(SPREADS.square())
        mixture.groups.copy_(torch.arange(4))
    even, late = (ce.ClassifierEnergy(heads, labels, base, name=name) for labels, name in (([0, 2], "even"), ([2, 3], "late")))
    return base, even, late


def distribution(rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns shares, means and standard deviations of some of the Gaussians, at the lowest level."""
    return WEIGHTS[rows] / WEIGHTS[rows].sum(), CENTRES[rows], (SPREADS[rows].square() + LEVEL**2).sqrt()


@pytest.mark.parametrize(
    ("build", "rows"),
    [
        (lambda base, even, late: base, [0, 1, 2, 3]),
        (lambda base, even, late: even, [0, 2]),
        (lambda base, even, late: ~even, [1, 3]),
        (lambda base, even, late: even & late, [2]),
        (lambda base, even, late: even ^ late, [0, 3]),
    ],
)
def test_draws_of_events_have_the_density_of_their_gaussians(energies, build, rows):
    drawn, trace = build(*energies).latents.sample(DRAWS, seed=1, dtype=torch.float64, trace=True)
    assert isinstance(trace.sampler, MixtureDraws) and trace.acceptance.mean() > 0.4
    shares, centres, spreads = distribution(rows)
    for axis in range(3):

        def cdf(values: object, axis: int = axis) -> object:
            each = torch.distributions.Normal(centres[:, axis], spreads[:, axis]).cdf(torch.as_tensor(values)[:, None])
            return (shares * each).sum(1).numpy()

        assert stats.kstest(drawn[:, axis].numpy(), cdf).pvalue > 1e-4


def test_weights_of_events_count_as_their_powers(energies):
    """The mean of $w$ log P under the density of `w * event`, against importance weights of draws of the base."""
    base, even, late = energies
    asked = (2 * even) & (3 * ~late)
    prior = base.latents.sample(40_000, seed=2, dtype=torch.float64)
    weights = (-asked.evidence(prior, sigma=torch.tensor(LEVEL, dtype=torch.float64))).softmax(0)
    drawn = asked.latents.sample(DRAWS, seed=3, dtype=torch.float64)
    error = drawn.std(0) / DRAWS**0.5 + (weights.square().sum() * prior.var(0)).sqrt()
    assert ((drawn.mean(0) - weights @ prior).abs() < 4 * error).all()


def test_other_expressions_are_drawn_along_noise_levels(energies):
    base, even, late = energies
    sampler = lambda energy, **call: energy.latents.sample(8, seed=0, dtype=torch.float64, trace=True, **call)[1].sampler
    assert type(sampler(2 * (even & late))).__name__ == "Annealed"  # the base has a weight
    assert type(sampler(ce.ClassifierEnergy(even.logits, base=base, labels=4).given(y=torch.arange(8) % 4))).__name__ == "Annealed"
    steep = ce.as_energy(lambda x: 20 * (x[:, 0] - 4).square(), event_shape=(3,))
    assert type(sampler(even & steep)).__name__ == "Annealed"  # no Gaussian is near it
    assert type(sampler(0.5 * even)).__name__ == "FeynmanKac"
    refused(ExpressionError, "no term of .* has one unbound", steep.sample, 8, sampler="mixture")
    found = sampler(even, init=(1.5 * torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))), sigma_max=1.0)
    assert type(found).__name__ == "Annealed" and found.sigma_max == 1.0


def test_draws_do_not_depend_on_batches(energies):
    asked = energies[1] & ~energies[2]
    assert torch.equal(asked.latents.sample(20, seed=0), asked.latents.sample(20, seed=0, batch_size=7))

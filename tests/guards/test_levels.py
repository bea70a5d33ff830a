"""Samplers along a path of densities draw heavy tails and data of any width, centre and shape right, or say that they do not."""

import math
import warnings
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch import distributions as td

import composable_energy as ce
from composable_energy_diffusion import DiffusionEnergy, log_likelihood

N, ERRORS = 2000, 4.5
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
DENSITIES = {
    "StudentT(4)": (td.StudentT(4.0), stats.t(4)),
    "Cauchy": (td.Cauchy(0.0, 1.0), stats.cauchy()),
    "HalfNormal": (td.HalfNormal(1.0), stats.halfnorm()),
    "Exponential": (td.Exponential(1.0), stats.expon()),
    "Laplace": (td.Laplace(0.0, 1.0), stats.laplace()),
    "LogNormal": (td.LogNormal(0.0, 1.0), stats.lognorm(1)),
    "Pareto": (td.Pareto(1.0, 3.0), stats.pareto(3)),
    "StudentT(4) of 10": (td.Independent(td.StudentT(torch.full((10,), 4.0)), 1), stats.t(4)),
}


def errors(x: Tensor, law: Any) -> float:
    """By how many standard errors the share of draws below a quantile is off, at most."""
    p = torch.tensor(LEVELS, dtype=torch.float64)
    below = (x.reshape(len(x), -1)[:, :1].double() <= torch.from_numpy(law.ppf(p))).double().mean(0)
    return float(((below - p) / (p * (1 - p) / len(x)).sqrt()).abs().max())


@pytest.mark.full
@pytest.mark.parametrize("name", DENSITIES)
def test_annealed_draws_the_quantiles_of_heavy_tails_without_a_warning(name):
    distribution, law = DENSITIES[name]
    assert errors(ce.as_energy(distribution).sample(N, seed=11, sampler="annealed"), law) < ERRORS


@pytest.mark.full
@pytest.mark.parametrize("name", ["StudentT(4)", "Cauchy", "LogNormal", "Pareto"])
@pytest.mark.parametrize("sampler", [{"sampler": "annealed", "corrector": "mala"}, {"sampler": "smc"}], ids=str)
def test_quantiles_are_those_of_the_density_or_the_call_warns(name, sampler):
    distribution, law = DENSITIES[name]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        off = errors(ce.as_energy(distribution).sample(N, seed=11, **sampler), law)
    assert off < ERRORS or any(isinstance(warning.message, ce.SamplingWarning) for warning in found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:weak")
def test_a_step_that_is_too_long_for_the_last_level_warns():
    energy = ce.as_energy(lambda x: x.square().sum(1) / 2e-4, event_shape=(2,))
    with pytest.warns(ce.SamplingWarning, match=r"acceptance: The corrector accepts .* of its steps at the last level"):
        energy.sample((64, 2), sampler="annealed", corrector=ce.get("sampler", "hmc")(step_size=0.5), seed=0)


@pytest.mark.slow
def test_paths_contradict_draws_of_separate_modes():
    """Chains that fall into modes too early are not weighed, and say so; `smc` weighs them."""
    far = td.Normal(torch.zeros(1), 0.3)
    two = ce.as_energy(lambda x: -torch.logaddexp(math.log(0.9) + far.log_prob(x + 4)[:, 0], math.log(0.1) + far.log_prob(x - 4)[:, 0]))
    with pytest.warns(ce.SamplingWarning, match=r"weak: Chains of `annealed` are not weighed .* Use `tempering` or `smc`"):
        two.sample((N, 1), sampler="annealed", levels=8, mean=torch.tensor([-3.6]), scale=torch.tensor([2.3]), seed=11)


class Data:
    """A mixture of normal distributions in one dimension."""

    def __init__(self, means: list[float], widths: list[float], shares: list[float]) -> None:
        self.means, self.widths, self.shares = torch.tensor(means), torch.tensor(widths), torch.tensor(shares)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = self.widths**2 + sigma[:, None] ** 2
        gaps = self.means - x
        weights = torch.softmax(self.shares.log() - variance.log() / 2 - gaps.square() / (2 * variance), 1)
        return (weights * gaps / variance).sum(1, keepdim=True)

    def model(self, low: float, high: float) -> DiffusionEnergy:
        """A network of the clean points under a variance exploding schedule."""
        schedule = {"name": "ve", "sigma_min": low, "sigma_max": high}
        return DiffusionEnergy(lambda x, t: x + t[:, None] ** 2 * self.score(x, t), schedule, "x0", event_shape=(1,))

    def scores(self) -> ce.ScoreEnergy:
        """A score of any level, of which nothing says the levels."""
        return ce.ScoreEnergy(lambda x, sigma: self.score(x, sigma), event_shape=(1,))

    def errors(self, x: Tensor) -> list[float]:
        """By how many standard errors the mean, the widths and the shares of draws are off."""
        mean = (self.shares * self.means).sum()
        variance = (self.shares * (self.widths**2 + (self.means - mean) ** 2)).sum()
        found = [(x.mean() - mean) / (variance / N).sqrt()]
        nearest = ((x - self.means).abs() / self.widths).argmin(1)
        for index, (width, share) in enumerate(zip(self.widths, self.shares, strict=True)):
            own = x[nearest == index]
            found.append((own.std() / width - 1) * math.sqrt(2 * share * N))
            found.append((len(own) / N - share) / (share * (1 - share) / N).sqrt().clamp_min(1e-9))
        return [abs(float(error)) for error in found]


UNIT, WIDEST, NARROW = (Data([0.0], [width], [1.0]) for width in (1.0, 100.0, 0.05))
FAR, NEAR = Data([-30.0, 30.0], [1.0, 1.0], [0.8, 0.2]), Data([-2.0, 2.0], [0.3, 0.3], [0.8, 0.2])
AWAY, FARTHER, FINE = Data([50.0], [1.0], [1.0]), Data([1000.0], [1.0], [1.0]), Data([-1.0, 1.0], [0.05, 0.05], [0.5, 0.5])
CASES = {
    "a normal density wider than its levels": (WIDEST, WIDEST.model(0.01, 50.0)),
    "modes farther apart than the default levels": (FAR, FAR.model(0.01, 50.0)),
    "far modes that nothing says": (FAR, FAR.scores()),
    "modes at a range below the default": (NEAR, NEAR.model(0.01, 3.0)),
    "data that are not centred": (AWAY, AWAY.scores()),
    "data farther away than the levels": (FARTHER, FARTHER.model(0.01, 80.0)),
    "narrow data that nothing says": (NARROW, NARROW.scores()),
    "narrow modes": (FINE, FINE.model(0.002, 80.0)),
}


@pytest.mark.full
@pytest.mark.parametrize(
    ("case", "sampler"), [(case, sampler) for i, case in enumerate(CASES) for sampler in (None, ("sde", "ode", "feynman-kac")[i % 3])]
)
def test_draws_have_the_density_of_the_data(case, sampler):
    data, energy = CASES[case]
    x = energy.sample((N, 1), sampler=sampler, seed=11)
    assert max(data.errors(x)) < ERRORS


@pytest.mark.slow
def test_an_expression_is_drawn_over_the_levels_that_all_of_its_models_know():
    seen: list[float] = []

    def model(low: float, high: float, mean: float) -> DiffusionEnergy:
        def clean(x: Tensor, t: Tensor) -> Tensor:
            seen.extend([float(t.min()), float(t.max())])
            return (x * 4 + mean * t[:, None] ** 2) / (4 + t[:, None] ** 2)

        return DiffusionEnergy(clean, {"name": "ve", "sigma_min": low, "sigma_max": high}, "x0", event_shape=(1,))

    base = model(0.002, 300.0, 0.0)
    expression = model(0.01, 60.0, 2.0).relative_to(base) & model(0.02, 90.0, -1.0).relative_to(base)
    x = expression.sample((N, 1), seed=11)
    assert min(seen) * 1.001 >= 0.02 and max(seen) <= 60.0 * 1.001
    assert abs(x.mean() - 1) < ERRORS * 2 / math.sqrt(N) and abs(x.std() / 2 - 1) < ERRORS / math.sqrt(2 * N)
    with pytest.raises(ce.errors.OptionError, match="no noise level in common"):
        (model(0.1, 0.5, 0.0) & model(0.6, 3.0, 0.0)).sample((4, 1), seed=0)


@pytest.mark.parametrize("sampler", [None, "ode"])
def test_levels_that_end_within_the_data_warn(sampler):
    with pytest.warns(ce.SamplingWarning, match=r"start: At the highest noise level, 1, .* raise sigma_max"):
        NEAR.model(0.01, 1.0).sample((8, 1), sampler=sampler, seed=0)
    with pytest.warns(ce.SamplingWarning, match=r"start: At the highest noise level, 4, .* raise sigma_max"):
        FAR.scores().sample((8, 1), sampler=sampler, sigma_max=4.0, seed=0)


@pytest.mark.parametrize("sampler", [None, "feynman-kac"])
def test_levels_above_the_spread_and_data_that_no_start_can_see_warn(sampler):
    with pytest.warns(ce.SamplingWarning, match=r"lowest noise level is 2: the last step takes away 55% of it"):
        UNIT.model(2.0, 30.0).sample((8, 1), sampler=sampler, seed=0)
    with pytest.warns(ce.SamplingWarning, match="parts of them are too far to be seen"):
        Data([0.0, 1000.0], [1.0, 1.0], [0.98, 0.02]).scores().sample((64, 1), sampler=sampler, seed=0)


@pytest.mark.parametrize("recommended", [None, ce.Recommendation("annealed", {"sigma_max": 10.0})], ids=["plain", "recommended"])
def test_a_base_that_two_terms_count_warns_also_where_their_author_recommends_levels(recommended):
    """The exact variance of the draws is .5; the levels give .4."""

    def noised(mean):
        energy = ce.as_energy(lambda x, sigma=0.0: (x - mean).square().sum(1) / (2 + 2 * torch.as_tensor(sigma).square()), event_shape=(2,))
        energy.recommended = recommended
        return energy

    with pytest.warns(ce.SamplingWarning, match=r"start: .* relative to one base"):
        (noised(0.0) & noised(1.0)).sample((64, 2), sampler="annealed", seed=0)


@pytest.mark.parametrize(("mean", "width", "low", "high"), [(5.0, 20.0, 0.01, 50.0), (50.0, 1.0, 0.01, 80.0)])
def test_the_likelihood_of_data_of_any_width_is_that_of_the_closed_form(mean, width, low, high):
    points = mean + width * torch.tensor([[0.0], [1.0], [-2.0]])
    found = log_likelihood(Data([mean], [width], [1.0]).model(low, high), points, exact=True)
    torch.testing.assert_close(found.values, torch.distributions.Normal(mean, width).log_prob(points[:, 0]), atol=0.01, rtol=0)

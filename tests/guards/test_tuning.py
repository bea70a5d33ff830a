"""Samplers that lose something say so: coarse rounding, far modes, walls, heavy tails; tuned ones and paths of densities lose nothing."""

import math
import re
import warnings
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch import distributions as td
from torch.distributions import Normal, VonMises
from torch.nn.functional import softplus

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy_diffusion import DiffusionEnergy, log_likelihood

HINT = r"rounding: Energies are about .* apart: too coarse for what they decide, .* dtype=torch.float64, .* leave a constant"
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


def bowl(constant, centre=0.0):
    return ce.as_energy(lambda x: (x - centre).square().sum(1) / 2 + constant, event_shape=(1,))


OPTIONS = {
    "mala": {"step_size": 0.5, "steps": 20},
    "chees": {"step_size": 0.5, "trajectory": 1.0, "steps": 20},
    "tempering": {"levels": 2, "mean": 0.0, "scale": 1.5, "steps": 20},
    "smc": {"mean": 0.0, "scale": 1.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", OPTIONS)
def test_samplers_that_compare_energies_warn(sampler):
    with pytest.warns(SamplingWarning, match=HINT):
        _, trace = bowl(1e8).sample(100, sampler=sampler, seed=0, trace=True, **OPTIONS[sampler])
    assert "rounding" in {warning.kind for warning in trace.warnings()}


@pytest.mark.parametrize(("constant", "dtype"), [(0.0, torch.float32), (-5e5, torch.float32), (1e8, torch.float64)])
def test_energies_of_usual_size_float64_and_gradients_alone_do_not(constant, dtype):
    x = bowl(constant).sample(2000, sampler="mala", step_size=1.0, steps=100, seed=2, init=torch.zeros(2000, 1, dtype=dtype))
    bowl(1e8).sample(100, sampler="langevin", step_size=0.1, steps=20, seed=0)
    assert abs(x.std().item() - 1) < 4 / math.sqrt(2 * 2000)


@pytest.mark.full
def test_normalisers_and_calibrated_mixtures_warn():
    with pytest.warns(SamplingWarning, match=r"what they decide, log Z"):
        ce.log_z(bowl(1e8), seed=0, particles=256)
    with pytest.warns(SamplingWarning, match=r"what they decide, log Z"):
        ce.calibrate(bowl(1e8) | bowl(1e8, 3.0), particles=256, seed=0)


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
        FAR.sample(64, sampler="tempering", steps=100, seed=21)
    assert any(re.match("trips: The points of .* of the chains still descend from the start", str(w.message)) for w in caught)
    points = mixture((3.0, -3.0), (1.0, 1.0), (0.7, 0.3), 2).sample(400, sampler="tempering", steps=100, seed=21)  # no warning
    assert abs((points[:, 0] > 0).double().mean().item() - 0.7) < 4.5 * math.sqrt(0.21 / 400)


F64 = torch.float64


def gaussian(precision: torch.Tensor, mean: torch.Tensor) -> ce.Energy:
    matrix, center = precision.float(), mean.float()
    return ce.as_energy(lambda x: ((x - center) @ matrix * (x - center)).sum(1) / 2, event_shape=(len(mean),))


def difference_of_sums(size: int = 300) -> torch.Tensor:
    signs = torch.where(torch.arange(size) % 2 == 0, 1.0, -1.0).to(F64)
    return torch.eye(size, dtype=F64) + 25 / size * torch.outer(signs, signs)


def hierarchy(groups: int = 20, each: int = 15) -> torch.Tensor:
    """Coordinates with a common part, and a part of their group, both smaller than their own."""
    return torch.eye(groups * each, dtype=F64) + 0.09 + 0.09 * torch.block_diag(*[torch.ones(each, each, dtype=F64)] * groups)


@pytest.mark.full
@pytest.mark.parametrize("covariance", [difference_of_sums(), hierarchy()], ids=["difference of sums", "hierarchy"])
def test_a_slow_direction_that_no_coordinate_shows_counts(covariance):
    """The means of chains vary along it as those of dozens of independent draws do: by less than a tenth of the variance."""
    _, trace = gaussian(torch.linalg.inv(covariance), torch.zeros(len(covariance))).sample(64, seed=5, trace=1)
    variances, axes = torch.linalg.eigh(covariance)
    slowest = trace.points.double() @ axes[:, -1]
    assert slowest.mean(0).var() < 0.1 * variances[-1]
    assert slowest.square().mean() == pytest.approx(variances[-1].item(), rel=0.15) and trace.warnings() == []


@pytest.mark.full
@pytest.mark.parametrize("options", [{"step_size": 0.1}, {"trajectory": 2.0, "metric": "dense"}])
def test_one_option_alone_leaves_the_others_to_be_tuned(options):
    sd = torch.tensor([0.2, 1.0, 2.0], dtype=F64)
    x, trace = gaussian((1 / sd.square()).diag(), torch.ones(3)).sample(500, sampler="chees", seed=5, trace=True, **options)
    tuned = trace.sampler
    assert all(getattr(tuned, name) == value for name, value in options.items() if name != "metric")
    assert tuned.step_size is not None and tuned.trajectory is not None and {"step_size", "trajectory"} - options.keys() <= set(trace.tuned)
    assert ((x.double().mean(0) - 1).abs() < 4.5 * sd / 500**0.5).all() and ((x.double().std(0) / sd - 1).abs() < 4.5 / 1000**0.5).all()


def plane(scale: float) -> ce.Energy:
    return ce.as_energy(Normal(torch.zeros(2), scale)) & ~ce.as_energy(Normal(torch.ones(2), 0.5))


def circle(concentration: float) -> ce.Energy:
    wide, narrow = (ce.as_energy(VonMises(torch.zeros(1), torch.tensor([k]))) for k in (0.001, concentration))
    return wide & ~narrow


def wall(size: int, steepness: float) -> ce.Energy:
    return ce.as_energy(lambda x: x.square().sum(1) / 50 + softplus(steepness * x.sum(1) / size**0.5), event_shape=(size,))


def draw(energy: ce.Energy, sampler: str, seed: int = 5) -> torch.Tensor:
    """Returns the last half of 512 chains, after a check that at most 1 % of them stood still in it."""
    _, trace = energy.sample(512, sampler=sampler, steps=200, seed=seed, trace=1)
    points = trace.points.double()
    points = points[len(points) // 2 :].flatten(2)
    assert (points == points[:1]).all(2).all(0).double().mean() <= 0.01
    return points


def assert_mean(values: torch.Tensor, expected: float) -> None:
    """Chains are independent: the standard error is that of their means."""
    means = values.mean(0)
    assert (means.mean() - expected).abs() < 4.5 * means.std() / math.sqrt(len(means))


def integral(energy: ce.Energy, low: float, high: float, size: int, function) -> float:
    axis = torch.linspace(low, high, 1201 if size > 1 else 100_001, dtype=F64)
    grid = torch.cartesian_prod(*[(axis[1:] + axis[:-1]) / 2] * size).view(-1, size)
    with torch.no_grad():
        weights = torch.softmax(-energy.double()(grid), 0)
    return (weights * function(grid)).sum().item()


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
@pytest.mark.parametrize(
    ("sampler", "energy", "end", "function"),
    [
        ("hmc", plane(10.0), 70, lambda x: (x - 1).norm(dim=-1)),
        ("chees", plane(10.0), 70, lambda x: x.sum(-1)),
        ("mala", circle(50.0), math.pi, lambda x: x[..., 0].cos()),
        ("chees", circle(7.0), math.pi, lambda x: x[..., 0].cos()),
        ("hmc", wall(1, 100.0), 35, lambda x: x[..., 0]),
        ("mala", wall(10, 100.0), 35, lambda x: x.sum(-1) / x.shape[-1] ** 0.5),
    ],
    ids=["hmc plane", "chees plane", "mala arc", "chees arc", "hmc wall", "mala wall"],
)
def test_no_chain_stands_still_at_a_border(sampler, energy, end, function):
    """Of a complement, of an arc, and of a steep wall across all coordinates, whose sum is half of a Gaussian."""
    points = draw(energy, sampler)
    alone = wall(1, 100.0) if energy.event_shape == (10,) else energy
    assert_mean(function(points), integral(alone, -end, end, alone.event_shape[0], function))


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
APART, NEAR = Data([-30.0, 30.0], [1.0, 1.0], [0.8, 0.2]), Data([-2.0, 2.0], [0.3, 0.3], [0.8, 0.2])
AWAY, FARTHER, FINE = Data([50.0], [1.0], [1.0]), Data([1000.0], [1.0], [1.0]), Data([-1.0, 1.0], [0.05, 0.05], [0.5, 0.5])
CASES = {
    "a normal density wider than its levels": (WIDEST, WIDEST.model(0.01, 50.0)),
    "modes farther apart than the default levels": (APART, APART.model(0.01, 50.0)),
    "far modes that nothing says": (APART, APART.scores()),
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
    assert max(data.errors(energy.sample((N, 1), sampler=sampler, seed=11))) < ERRORS


@pytest.mark.slow
def test_an_expression_is_drawn_over_the_levels_that_all_of_its_models_know():
    seen: list[float] = []

    def model(low: float, high: float, mean: float) -> DiffusionEnergy:
        def clean(x: Tensor, t: Tensor) -> Tensor:
            seen.extend([float(t.min()), float(t.max())])
            return (x * 4 + mean * t[:, None] ** 2) / (4 + t[:, None] ** 2)

        return DiffusionEnergy(clean, {"name": "ve", "sigma_min": low, "sigma_max": high}, "x0", event_shape=(1,))

    base = model(0.002, 300.0, 0.0)
    x = (model(0.01, 60.0, 2.0).relative_to(base) & model(0.02, 90.0, -1.0).relative_to(base)).sample((N, 1), seed=11)
    assert min(seen) * 1.001 >= 0.02 and max(seen) <= 60.0 * 1.001
    assert abs(x.mean() - 1) < ERRORS * 2 / math.sqrt(N) and abs(x.std() / 2 - 1) < ERRORS / math.sqrt(2 * N)


@pytest.mark.parametrize("sampler", [None, "ode"])
def test_levels_that_end_within_the_data_warn(sampler):
    with pytest.warns(ce.SamplingWarning, match=r"start: At the highest noise level, 1, .* raise sigma_max"):
        NEAR.model(0.01, 1.0).sample((8, 1), sampler=sampler, seed=0)
    with pytest.warns(ce.SamplingWarning, match=r"start: At the highest noise level, 4, .* raise sigma_max"):
        APART.scores().sample((8, 1), sampler=sampler, sigma_max=4.0, seed=0)


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

"""Feynman-Kac sampling: shares, moments and log Z of expressions of scores, beside quadrature and closed forms."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, constraints

import composable_energy as ce
from benchmarks.score_expressions import EXPRESSIONS, Mixture, expressions, quadrant_shares, quadrants
from composable_energy.errors import ExpressionError, MixtureWarning, OptionError
from composable_energy.sampling import Trace
from composable_energy.testing import Gaussian
from composable_energy_mcmc import Annealed, FeynmanKac
from tests.refusals import refused

pytestmark = pytest.mark.slow

F64 = torch.float64
FAST = FeynmanKac(corrector_steps=0)


def drawn(energy: ce.Energy, sampler: FeynmanKac = FAST, chains: int = 2000, seed: int = 0, axes: int = 2) -> tuple[Tensor, Trace]:
    return energy.sample((chains, axes), sampler=sampler, seed=seed, dtype=F64, trace=True)


@pytest.mark.full
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_of_scores_have_the_shares_of_quadrature(name):
    truth, log_z = quadrant_shares(expressions(values=True)[name], count=400)
    energy = expressions(values=False)[name]
    assert not energy.has_value
    x, trace = drawn(energy)
    effective = min(trace.scalars["ess"])
    assert effective > 0.4 * len(x) and ((quadrants(x) - truth).abs() < 4 * (truth * (1 - truth) / effective).sqrt()).all()
    assert abs(trace.scalars["log_z"][-1] - log_z) < 0.1


def test_one_gaussian_is_drawn_exactly_even_with_few_levels():
    """The step is exact for a Gaussian with the width `spread`; only the last level of noise and its denoising are left."""
    sampler = FeynmanKac(levels=6, sigma_min=0.1, corrector_steps=2)
    x, trace = drawn(Mixture.of([[0.7, -0.4]], 1.0).energy("one", values=False), sampler, 8000)
    assert (x.mean(0) - torch.tensor([0.7, -0.4])).abs().max() < 5 / math.sqrt(8000)
    assert (x.var(0) - 1 / (1 + 0.1**2)).abs().max() < 5 * math.sqrt(2 / 8000)
    assert min(trace.scalars["ess"]) > 0.99 * 8000 and abs(trace.scalars["log_z"][-1]) < 0.02


def test_products_of_gaussians_are_not_too_narrow():
    """Steps are as exact as for one leaf where `spread` is that of the leaves; without it variances are .90 of the true one."""
    product = ce.all_of(*(Mixture.of([[0.0, 0.0]], 1.0).energy(name, values=False) for name in "abc"))
    assert abs(3 * drawn(product, FeynmanKac(corrector_steps=3), 4000)[0].var(0).mean() - 1) < 0.06


@pytest.mark.parametrize("constant", [pytest.param(0.0, marks=pytest.mark.full), 7.0])
def test_shares_of_energies_are_those_of_the_expression_at_the_last_level(constant):
    """A constant that vanishes with the noise changes nothing; at the last level it counts as in any expression."""
    left, right = Mixture.of([[-2.0]], 0.5), Mixture.of([[2.0]], 0.5)
    one = ce.as_energy(lambda x, sigma: constant * sigma / (1 + sigma) - left.log_density(x, sigma), name="left", event_shape=(1,))
    two = ce.as_energy(lambda x, sigma: -right.log_density(x, sigma) - math.log(3), name="right", event_shape=(1,))
    x, trace = drawn(ce.any_of(one, two, weights=[1.0, 1.0]), chains=3000, axes=1)
    expected = math.exp(-constant * 0.02 / 1.02)
    expected = expected / (expected + 3)
    assert abs((x < 0).double().mean() - expected) < 5 * math.sqrt(3 / 16 / min(trace.scalars["ess"]))


@pytest.mark.full
def test_a_mixture_of_scores_with_noise_levels_needs_no_normaliser():
    one, two = (Mixture.of([[mean]], width).energy(str(mean), values=False) for mean, width in ((-2.0, 0.3), (2.0, 1.0)))
    x, trace = drawn(one | two, axes=1)  # a MixtureWarning would be an error here
    assert abs((x < 0).double().mean() - (0.5 + Normal(2.0, 1.0).cdf(torch.tensor(0.0)).item() / 2)) < 4 * 0.5 / math.sqrt(2000)
    assert trace.scalars["log_z"][-1] == pytest.approx(math.log(2), abs=0.02) and trace.branch_shares is None
    with pytest.warns(MixtureWarning):
        drawn(one | Gaussian(torch.ones(1, dtype=F64)), FeynmanKac(levels=20), axes=1)


@pytest.mark.full
def test_terms_without_noise_levels_are_weighed():
    """A Gaussian times a steep logistic event and a quadratic observation, whose moments are known by quadrature."""
    base = Mixture.of([[0.0]], 1.0).energy("base", values=False)
    event = ce.ClassifierEnergy(lambda x: torch.cat([-3 * x, 3 * x], 1), 1, base, labels=2)
    seen = ce.as_energy(lambda x: 2 * (x - 0.5).square().sum(1), event_shape=(1,))
    grid = torch.linspace(-6, 6, 4001, dtype=F64)
    for energy, log_density in (
        (base & seen, -grid.square() / 2 - 2 * (grid - 0.5).square()),
        (~event, -grid.square() / 2 + torch.nn.functional.logsigmoid(-6 * grid)),
        (event & seen, -grid.square() / 2 - 2 * (grid - 0.5).square() + torch.nn.functional.logsigmoid(6 * grid)),
    ):
        p = torch.softmax(log_density, 0)
        mean, second = (p * grid).sum(), (p * grid.square()).sum()
        x, trace = drawn(energy, FeynmanKac(levels=60), 3000, axes=1)
        error = 4 * ((second - mean.square()) / min(trace.scalars["ess"])).sqrt()
        assert (x.mean() - mean).abs() < error + 0.02 and (x.square().mean() / second - 1).abs() < 0.15


def test_bad_input_is_refused():
    one = Mixture.of([[0.0]], 1.0).energy("one", values=False)
    plain = ce.as_energy(lambda x: x.square().sum(1), event_shape=(1,))
    blind = ce.ScoreEnergy(lambda x: -x, name="blind", event_shape=(1,))
    labelled = ce.ScoreEnergy(lambda x, sigma, y: (y[:, None] - x) / (1 + sigma[:, None] ** 2), name="labelled", event_shape=(1,))
    positive = ce.as_energy(lambda x, sigma: (x + sigma[:, None]).sum(1), support=constraints.positive, event_shape=(1,))
    for energy, message in (
        (plain, "no term .* depends on `sigma`"),
        (one.at(0.1), "no term .* depends on `sigma`"),
        (one & blind, "blind has neither a value nor the condition `sigma`"),
        (one & labelled.given(y=torch.arange(4.0)), "bind one for all"),
        (positive, "has a support"),
    ):
        refused(ExpressionError, message, energy.sample, (4, 1), sampler=FAST, seed=0)
    for options in ({"levels": 1}, {"weighted": 3}, {"gaussians": (1.0,)}):
        refused(OptionError, next(iter(options)), FeynmanKac, **options)
    tuned = drawn(one, FeynmanKac(levels=3), 4, axes=1)[1].sampler
    with pytest.raises(OptionError, match="1 Gaussians for the 2 leaves"):
        (one | Mixture.of([[1.0]], 1.0).energy("two", values=False)).sample((4, 1), sampler=tuned, seed=0)


def test_other_samplers_and_direct_evaluation_refuse_mixtures_of_scores():
    one, two = (Mixture.of([[mean]], 1.0).energy(f"at {mean}", values=False) for mean in (-2.0, 2.0))
    base = Mixture.of([[0.0]], 3.0).energy("base", values=False)
    x = torch.zeros(3, 1, dtype=F64)
    for energy in (one | two, one.relative_to(base) & ~two.relative_to(base), (one | two) & base):
        assert energy.needs_log_densities and not energy.has_value
        for sampler in ("annealed", "langevin"):
            refused(ExpressionError, r"needs values.*`feynman-kac`", energy.sample, (4, 1), sampler=sampler, seed=0)
        refused(ExpressionError, "needs values", energy.with_gradient, x, sigma=0.1)
        refused(ExpressionError, None, energy, x, sigma=0.1)
    with pytest.raises(ExpressionError, match="needs values"):
        ce.negate(one)  # the level of a density is an energy


# Weak evidence, and terms without noise levels


MODES = Mixture.of([[-1.5], [1.5]], 0.4, [0.7, 0.3])
BASE = MODES.energy("base", values=True)
BASE.recommended = ce.Recommendation("annealed", {"levels": 25, "sigma_max": 6.0, "sigma_min": 0.05, "corrector_steps": 3, "delta": 0.25})
GRID = torch.linspace(-6, 6, 20_001, dtype=F64)[:, None]


def log_odds(x: Tensor, sigma: Tensor) -> Tensor:
    """Which component a point with noise comes from: the log odds of the right one. They obey the path of the noise exactly."""
    return 3 * x / (0.16 + sigma[:, None] ** 2) + math.log(3 / 7)


right = ce.ClassifierEnergy(log_odds, 1, BASE, name="right")
wide = ce.as_energy(lambda x: torch.nn.functional.softplus(-3 * x[:, 0]), event_shape=(1,), name="a user's network")


def truth(energy: ce.Energy) -> float:
    """The share above 0, by quadrature of the density at data."""
    return torch.softmax(-energy(GRID, sigma=torch.full((len(GRID),), 1e-4, dtype=F64)), 0)[GRID[:, 0] > 0].sum().item()


def share_of(energy: ce.Energy, sampler=None, chains: int = 2000, seed: int = 3, **options) -> tuple[float, Trace]:
    x, trace = energy.sample((chains, 1), sampler=sampler, seed=seed, dtype=F64, trace=True, **options)
    return (x > 0).double().mean().item(), trace


def errors(energy: ce.Energy, share: float, trace: Trace) -> float:
    """How many standard errors a share is off, with the lowest effective number of chains."""
    exact = truth(energy)
    return abs(share - exact) / math.sqrt(exact * (1 - exact) / min(trace.scalars.get("ess", [trace.shape[0]])))


FULL = (right & wide, ce.any_of(right & wide, ~right, weights=[1.0, 1.0]))


@pytest.mark.parametrize("energy", [right.sharpened(0.3), *(pytest.param(one, marks=pytest.mark.full) for one in FULL)], ids=str)
@pytest.mark.filterwarnings("ignore::composable_energy.errors.MixtureWarning")
def test_weights_give_the_shares_of_the_expression(energy):
    share, trace = share_of(energy, FeynmanKac(levels=50, sigma_max=6.0, sigma_min=0.02, corrector_steps=1))
    assert trace.scalars["weighted"][-1] == 1 and errors(energy, share, trace) < 4


@pytest.mark.full
def test_without_weights_weak_evidence_is_far_off():
    """The test above can tell: the same steps without weights are many standard errors away, and `annealed` says so."""
    energy = right.sharpened(0.3)
    share, trace = share_of(energy, FeynmanKac(levels=50, sigma_max=6.0, sigma_min=0.02, weighted=False))
    assert errors(energy, share, trace) > 8
    with pytest.warns(ce.SamplingWarning, match="takes a power below 1 .* modes get wrong shares"):
        share, trace = share_of(energy, Annealed(levels=25, sigma_max=6.0))
    assert errors(energy, share, trace) > 8


def test_weak_evidence_is_drawn_with_weights_by_default():
    share, trace = share_of(right.sharpened(0.3))
    assert isinstance(trace.sampler, FeynmanKac) and trace.sampler.levels == 25 and errors(right.sharpened(0.3), share, trace) < 4
    for other in (right, right.sharpened(3), right & wide):
        assert isinstance(other.sample((2, 1), seed=0, dtype=F64, trace=True, steps=1)[1].sampler, Annealed)


@pytest.mark.full
def test_annealed_follows_a_plain_term_at_the_denoised_point():
    """Within .03, as the rule is not exact for two modes; the term is evaluated three times a level."""
    calls = []
    counted = ce.as_energy(lambda x: calls.append(len(x)) or torch.nn.functional.softplus(-3 * x[:, 0]), event_shape=(1,))
    share, _ = share_of(BASE & counted)
    assert abs(share - truth(BASE & wide)) < 0.03
    few = len(calls)
    share_of(BASE & counted, levels=35)
    assert len(calls) - few == few + 3 * 10


@pytest.mark.full
def test_weights_that_collapse_are_dropped_and_the_summary_says_so():
    """A score sharpened 20 times in 16 coordinates, a Gaussian whose width is known."""
    broad, narrow = (Mixture.of([[0.0] * 16], width).energy(str(width), values=False) for width in (2.0, 0.5))
    energy = narrow.relative_to(broad).sharpened(20)
    with pytest.warns(ce.SamplingWarning, match="collapsed.*from there on the draws follow correctors alone"):
        x, trace = energy.sample((400, 16), sampler=FeynmanKac(levels=100, corrector_steps=3), seed=0, dtype=F64, trace=True)
    assert trace.scalars["weighted"][0] == 1 and trace.scalars["weighted"][-1] == 0 and math.isnan(trace.scalars["ess"][-1])
    assert "weighted" in str(trace.summary()) and abs(x.std() / (20 / 0.25 - 19 / 4) ** -0.5 - 1) < 0.15


def test_few_chains_warn_that_weights_correct_nothing():
    with pytest.warns(ce.SamplingWarning, match="only among the chains of a call, and this one has 2"):
        right.sharpened(0.3).sample((2, 1), seed=0, dtype=F64)
    BASE.sample((2, 1), sampler=FeynmanKac(levels=10), seed=0, dtype=F64)  # the density of one leaf needs no weights

"""Annealed sampling: its correctors leave the density of each level; terms without noise levels take the denoised point of others."""

import math

import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError, SamplingDiverged
from composable_energy.sampling import Noise, State, energy_and_gradient
from composable_energy_mcmc import HMC, MALA, SMC, Annealed, ChEES, Langevin
from composable_energy_mcmc.level_gradient import level_gradient
from tests.refusals import refusals, refused

F64 = torch.float64
SPREAD = torch.tensor([0.2, 1.0, 3.0], dtype=F64)
MEAN, VARIANCE, SLOPE = (torch.tensor(row, dtype=F64) for row in ([0.5, -1.0], [0.09, 4.0], [2.0, -0.5]))
SIGMA = 0.7
X = 2 * torch.randn(40, 2, dtype=F64, generator=torch.Generator().manual_seed(0))


# A Gaussian with three widths, with noise of a level added and without.
NOISY = ce.as_energy(lambda x, sigma: (x.square() / (2 * (SPREAD**2 + sigma[:, None] ** 2))).sum(1), name="noisy")
PLAIN = ce.as_energy(lambda x: (x.square() / (2 * SPREAD**2)).sum(1), name="plain")


def worst(sampler: Annealed, energy: ce.Energy, steps: list[int], n: int = 20_000) -> float:
    """By how many standard errors means, variances and covariances are off, after the corrector moved exact draws of some levels."""
    found = []
    for step in steps:
        noise = Noise(3, range(n)).at(step)
        level = sampler.level_energy(energy, step)
        sd = (SPREAD**2 + level.bound["sigma"] ** 2).sqrt() if level.bound else SPREAD * math.sqrt(level.temperature)
        x = sd * noise.child("exact").normal(torch.zeros(n, 3, dtype=F64))
        with torch.no_grad():
            state, _ = sampler.correct(energy, State(x, energy(x, **level.bound), x), noise)
        white = state.x / sd
        second = (white.T @ white / n - torch.eye(3, dtype=F64)) * math.sqrt(n)
        second[range(3), range(3)] /= math.sqrt(2)
        assert ((state.x - x).abs().mean(0) / sd).max() > 0.05
        found += [float((white.mean(0) * math.sqrt(n)).abs().max()), float(second.abs().max())]
    return max(found)


CORRECTORS = [HMC(0.3, leapfrogs=6), MALA(0.08), ChEES(0.3, 1.5)]


@pytest.mark.slow
@pytest.mark.parametrize("corrector", CORRECTORS, ids=repr)
@pytest.mark.parametrize("energy", [NOISY, PLAIN], ids=str)
def test_exact_draws_of_a_level_stay_exact(corrector, energy):
    """Levels from 4 down to .05; the narrowest width is .2."""
    assert worst(Annealed(levels=9, corrector=corrector), energy, [1, 4, 7, 9]) < 4.5


@pytest.mark.full
def test_a_temperature_reaches_the_corrector():
    n = 4000
    sampler = Annealed(levels=12, corrector=HMC(0.2, leapfrogs=24), corrector_steps=3, temperature=0.5)
    assert ((PLAIN.sample((n, 3), sampler=sampler, seed=0, dtype=F64).var(0) / (0.5 * SPREAD**2) - 1).abs() < 5 * math.sqrt(2 / n)).all()


@pytest.mark.full
def test_a_corrector_is_tuned_once_in_units_of_the_level_and_kept():
    _, trace = NOISY.sample((3, 3), sampler=Annealed(levels=4, corrector="hmc"), seed=0, dtype=F64, trace=True)
    tuned = trace.sampler.corrector
    assert isinstance(tuned, HMC) and 0.3 < tuned.step_size < 2  # the density is a level wide, or little more
    _, again = NOISY.sample((3, 3), sampler=trace.sampler, seed=1, dtype=F64, trace=True)
    assert again.sampler.corrector is tuned or again.sampler.corrector == tuned


test_options_that_make_no_sense = refusals(
    (lambda: Annealed(corrector=3), "corrector must be a sampler or the name of one, got 3"),
    (lambda: Annealed(corrector=SMC()), "a corrector must be able to stop after any step"),
    (lambda: Annealed(corrector=Langevin(0.1, clamp=(0, 1))), "another box at each"),
    (lambda: Annealed(corrector=HMC(), corrector_steps=0), "needs corrector_steps"),
    (lambda: Annealed(corrector=HMC(), temperature=0), "a temperature above 0"),
    (lambda: Annealed(averaged=True, corrector="hmc"), "built-in corrector"),
    (lambda: PLAIN.sample((4, 3), sampler="annealed", averaged=True, dtype=F64), "does not depend on sigma"),
    (lambda: Annealed(averaged=1), "averaged"),
    (lambda: Annealed(rho=0.0), "rho"),
    error=OptionError,
)


@pytest.mark.parametrize("delta", [0.5, 1.0])
def test_averaged_noise_keeps_the_variance_at_large_steps_and_other_noise_does_not(delta):
    """Many steps at levels that hardly fall; the last one takes points to the means without their noise."""
    n, sigma = 4000, 1.0
    options = {"levels": 30, "sigma_max": 1.0001, "sigma_min": sigma, "corrector_steps": 2, "delta": delta}
    curvature = sigma**2 / (SPREAD**2 + sigma**2)
    expected = (SPREAD**2 + sigma**2) * (1 - curvature) ** 2
    samplers = (Annealed(averaged=flag, **options) for flag in (True, False))
    averaged, plain = (NOISY.sample((n, 3), sampler=sampler, seed=0, dtype=F64).var(0) for sampler in samplers)
    limit = 5 * math.sqrt(2 / n)
    assert ((averaged / expected - 1).abs() < limit).all()
    assert ((plain / expected * (1 - delta * curvature / 2) - 1).abs() < limit).all() and plain[0] / expected[0] > 1.25


def test_levels_are_equally_spaced_in_a_power_for_a_given_rho():
    sampler = Annealed(levels=5, sigma_min=0.25, sigma_max=4.0, rho=2.0)
    assert [sampler.level(step) for step in range(1, 6)] == pytest.approx([4.0, 1.625**2, 1.25**2, 0.875**2, 0.25])


def steep(x: Tensor, sigma: Tensor) -> Tensor:
    """A bowl, and for the first chain one that is a million times as steep."""
    return x.square().flatten(1).sum(1) / (2 * (1 + sigma**2)) * torch.where(torch.arange(len(x)) == 0, 1e6, 1.0)


def test_a_gradient_that_is_too_long_is_cut_and_others_stay_as_they_are():
    x = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    sampler = Annealed(levels=5, max_gradient=1.5)
    free, cut = (one.init(ce.as_energy(steep), x, Noise(0, range(3))) for one in (Annealed(levels=5), sampler))
    assert torch.equal(cut.grad[1:], free.grad[1:]) and torch.equal(cut.energy, free.energy)
    torch.testing.assert_close(cut.grad[0].norm() * sampler.level(1), torch.tensor(1.5 * 2, dtype=F64))  # four coordinates
    torch.testing.assert_close(cut.grad[0] / cut.grad[0].norm(), free.grad[0] / free.grad[0].norm())


def test_a_steep_term_diverges_without_a_limit_of_gradients_and_not_with_one():
    steep = NOISY & ce.as_energy(lambda x, sigma: 1e5 * x.square().sum(1))
    options = {"sampler": "annealed", "levels": 10, "sigma_min": 1.0, "corrector_steps": 30, "seed": 0, "dtype": F64}
    with pytest.warns(ce.SamplingWarning, match=r"times that of the Gaussian of the start"):
        refused(SamplingDiverged, None, steep.sample, (20, 3), **options)
        assert steep.sample((20, 3), max_gradient=3.0, **options).isfinite().all()


def gaussian_score(x: Tensor, sigma: Tensor) -> Tensor:
    return (MEAN - x) / (VARIANCE + sigma[:, None] ** 2)


def modes(x: Tensor, sigma: Tensor) -> Tensor:
    """Two Gaussians of width .6 at -1 and 1 in each coordinate, with noise."""
    means = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=F64)
    variance = 0.36 + sigma[:, None] ** 2
    return -torch.logsumexp(-(x[:, None] - means).square().sum(2) / (2 * variance), 1) + variance[:, 0].log()


wide = ce.as_energy(lambda x, sigma: ((x - MEAN).square() / (2 * (VARIANCE + sigma[:, None] ** 2))).sum(1), name="wide", event_shape=(2,))
score = ce.ScoreEnergy(gaussian_score, name="score", event_shape=(2,))
mixture = ce.as_energy(modes, name="mixture", event_shape=(2,))
tilt = ce.as_energy(lambda x: x @ SLOPE, name="tilt", event_shape=(2,))
bowl = ce.as_energy(lambda x: (x - 0.3).square().sum(1), name="bowl", event_shape=(2,))
hinge = ce.as_energy(lambda x: 50 * nn.functional.relu(0.5 - x[:, 1]).square(), name="hinge", event_shape=(2,))
noisy_event = ce.ClassifierEnergy(lambda x, sigma: x[:, :1] / (0.1 + sigma[:, None] ** 2), 1, mixture, labels=2)


class Halves(nn.Module):
    """A linear decoder of latents, to four numbers."""

    event_shape = (4,)

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z / 2, z / 2], 1)


decoded = ce.as_energy(lambda x: x @ torch.cat([SLOPE, SLOPE]), event_shape=(4,)).pull_back(Halves())


@pytest.mark.parametrize("energy", [wide & tilt, score & tilt, wide & decoded, score & 0.5 * (2.0 * tilt)], ids=str)
@pytest.mark.parametrize("sigma", [0.05, 0.7, 4.0])
def test_a_gaussian_with_a_linear_term_has_the_gradient_of_its_density_with_noise(energy, sigma):
    """$N(m, v)$ times $e^{-a x}$ is $N(m - v a, v)$, whose density with noise is known."""
    expected = (X - (MEAN - VARIANCE * SLOPE)) / (VARIANCE + sigma**2)
    torch.testing.assert_close(level_gradient(energy, X, sigma).grad, expected, rtol=1e-5, atol=1e-5)


ISOTROPIC = ce.as_energy(lambda x, sigma: ((x - MEAN).square() / (2 * (0.64 + sigma[:, None] ** 2))).sum(1), event_shape=(2,))


@pytest.mark.parametrize("precision", [torch.tensor([p, q], dtype=F64) for p, q in ((2.0, 2.0), (1e4, 1e4), (300.0, 0.5))], ids=str)
@pytest.mark.parametrize("sigma", [0.05, 0.7, 4.0])
def test_a_gaussian_with_a_quadratic_term_has_the_gradient_of_its_density_with_noise(precision, sigma):
    """However precise the term is: its pull is that of its mean over the data around the denoised point."""
    goal, generator = torch.tensor([0.3, -1.5], dtype=F64), torch.Generator().manual_seed(3)
    term = ce.as_energy(lambda x: ((x - goal).square() * precision).sum(1) / 2, event_shape=(2,))
    variance = 1 / (1 / 0.64 + precision)
    mean = variance * (MEAN / 0.64 + precision * goal)
    x = mean + (variance + sigma**2).sqrt() * torch.randn(40, 2, dtype=F64, generator=generator)
    expected = (x - mean) / (variance + sigma**2)
    found = level_gradient(ISOTROPIC & term, x, sigma).grad
    scale = expected.square().mean().sqrt()
    assert (found - expected).square().mean().sqrt() / scale < (1e-4 if precision[0] == precision[1] else 0.15)


def event_of(steepness: float) -> ce.Energy:
    return ce.ClassifierEnergy(lambda x: steepness * x[:, :1], 1, mixture, labels=2)


@pytest.mark.full
@pytest.mark.parametrize(
    ("energy", "plain", "error"),
    [
        (mixture & bowl, bowl, 0.2),
        (mixture & 20 * bowl, 20 * bowl, 0.3),
        (event_of(2.0), lambda z: nn.functional.softplus(-2 * z[:, 0]), 0.15),
        (event_of(20.0), lambda z: nn.functional.softplus(-20 * z[:, 0]), 1.2),
        (mixture & hinge, hinge, 0.5),
        (event_of(2.0) & bowl, lambda z: nn.functional.softplus(-2 * z[:, 0]) + bowl(z), 0.2),
        (mixture & wide.at(0.2), lambda z: wide(z, sigma=0.2), 0.2),
    ],
)
@pytest.mark.parametrize("sigma", [0.2, 0.7, 2.0])
def test_plain_terms_pull_as_in_the_density_with_noise(energy, plain, error, sigma):
    """The score of the density with noise by quadrature, in units of the noise level; at the denoised point alone errors reach 16."""
    axis, generator = torch.linspace(-6, 6, 181, dtype=F64), torch.Generator().manual_seed(1)
    grid = torch.cartesian_prod(axis, axis)
    log_density = -modes(grid, torch.zeros(len(grid), dtype=F64)) - plain(grid)
    clean = grid[torch.softmax(log_density, 0).multinomial(60, replacement=True, generator=generator)]
    x = clean + sigma * torch.randn(60, 2, dtype=F64, generator=generator)
    weights = torch.softmax(log_density - torch.cdist(x, grid).square() / (2 * sigma**2), 1)
    assert (sigma * level_gradient(energy, x, sigma).grad - (x - weights @ grid) / sigma).square().mean().sqrt() < error


def test_other_expressions_have_the_gradient_of_their_energy():
    """All terms with noise levels, none, and a single energy."""
    for energy in (mixture & wide, noisy_event, mixture, (wide & mixture) | wide):
        found, (energies, gradients) = level_gradient(energy, X, SIGMA), energy_and_gradient(energy, X, sigma=SIGMA)
        assert torch.equal(found.energy, energies) and torch.equal(found.grad, gradients) and found.slope is None
    assert level_gradient(mixture & bowl, X, SIGMA).slope is not None


def test_in_a_mixture_a_plain_term_weighs_its_branch():
    """Far above the energy of the other branch, it leaves the gradient of that one; far below, that of its own."""
    for constant, rest in ((60.0, wide), (-60.0, mixture)):
        term = ce.as_energy(lambda x, constant=constant: constant + 0 * x.sum(1), event_shape=(2,))
        found = level_gradient(ce.any_of(mixture & term, wide, weights=[1.0, 1.0]), X, SIGMA)
        torch.testing.assert_close(found.grad, energy_and_gradient(rest, X, sigma=SIGMA)[1])
        assert found.slope is None  # it does not add, so nothing can be held


def test_rows_of_bound_conditions_stay_with_their_chains():
    labelled = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1), event_shape=(2,))
    rows = torch.linspace(-1, 1, 40, dtype=F64)
    whole = level_gradient(mixture & labelled.given(y=rows), X, SIGMA).grad
    for i in (0, 17, 39):
        torch.testing.assert_close(whole[i : i + 1], level_gradient(mixture & labelled.given(y=rows[i]), X[i : i + 1], SIGMA).grad)


def test_a_term_without_a_gradient_is_refused_beside_plain_terms():
    detached = ce.as_energy(lambda x, sigma: (x.detach() ** 2).sum(1) + sigma, name="detached", event_shape=(2,))
    with pytest.raises(ExpressionError, match="detached changes with its points, but its result has no gradient"):
        (wide & detached & bowl).sample((4, 2), sampler="annealed", seed=0, dtype=F64)


def test_a_level_is_one_value_for_all_points():
    seen = set()
    energy = ce.as_energy(lambda x, sigma: seen.add(sigma.stride()) or x.square().sum(1) / (1 + sigma**2) / 2)
    assert len(energy.sample((64, 2), sampler="annealed", sigma_min=0.05, sigma_max=4.0, seed=0)) == 64 and seen == {(0,)}

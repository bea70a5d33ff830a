"""Gradients at noise levels: terms without noise levels are evaluated at the denoised point of the others."""

import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import ExpressionError
from composable_energy.sampling import energy_and_gradient
from composable_energy_mcmc.level_gradient import level_gradient

F64 = torch.float64
MEAN, VARIANCE, SLOPE = (torch.tensor(row, dtype=F64) for row in ([0.5, -1.0], [0.09, 4.0], [2.0, -0.5]))
SIGMA = 0.7
X = 2 * torch.randn(40, 2, dtype=F64, generator=torch.Generator().manual_seed(0))


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
    ids=lambda value: str(value) if isinstance(value, ce.Energy | float) else "",
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
    found = level_gradient(energy, x, sigma)
    assert (sigma * found.grad - (x - weights @ grid) / sigma).square().mean().sqrt() < error


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
        one = level_gradient(mixture & labelled.given(y=rows[i]), X[i : i + 1], SIGMA).grad
        torch.testing.assert_close(whole[i : i + 1], one)


def test_a_term_without_a_gradient_is_refused_beside_plain_terms():
    detached = ce.as_energy(lambda x, sigma: (x.detach() ** 2).sum(1) + sigma, name="detached", event_shape=(2,))
    with pytest.raises(ExpressionError, match="detached changes with its points, but its result has no gradient"):
        (wide & detached & bowl).sample((4, 2), sampler="annealed", seed=0, dtype=F64)

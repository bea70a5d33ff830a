"""Gradients at noise levels: terms without noise levels are evaluated at the denoised point of the others."""

import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import ExpressionError
from composable_energy.sampling import energy_and_gradient, has_plain_terms, level_gradient

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
event = ce.ClassifierEnergy(lambda x: 2 * x[:, :1], 1, mixture, labels=2)
noisy_event = ce.ClassifierEnergy(lambda x, sigma: x[:, :1] / (0.1 + sigma[:, None] ** 2), 1, mixture, labels=2)


class Halves(nn.Module):
    """A linear decoder of latents, to four numbers."""

    event_shape = (4,)

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z / 2, z / 2], 1)


decoded = ce.as_energy(lambda x: x @ torch.cat([SLOPE, SLOPE]), event_shape=(4,)).pull_back(Halves())


@pytest.mark.parametrize(
    "energy",
    [wide & tilt, score & tilt, wide & decoded, score & 0.5 * (2.0 * tilt)],
    ids=str,
)
@pytest.mark.parametrize("sigma", [0.05, 0.7, 4.0])
def test_a_gaussian_with_a_linear_term_has_the_gradient_of_its_density_with_noise(energy, sigma):
    """$N(m, v)$ times $e^{-a x}$ is $N(m - v a, v)$, whose density with noise is known."""
    expected = (X - (MEAN - VARIANCE * SLOPE)) / (VARIANCE + sigma**2)
    torch.testing.assert_close(level_gradient(energy, X, sigma).grad, expected, rtol=1e-5, atol=1e-5)


def composed(x: Tensor, plain, others) -> Tensor:
    """The energy of terms with noise levels, plus that of a plain term at the denoised point, by autograd throughout."""
    sigma = torch.full((len(x),), SIGMA, dtype=F64)
    energies = others(x, sigma)
    (gradient,) = torch.autograd.grad(energies.sum(), x, create_graph=True)
    return energies + plain(x - SIGMA**2 * gradient)


@pytest.mark.parametrize(
    ("energy", "plain", "others"),
    [
        (mixture & bowl, bowl, modes),
        (event, lambda z: nn.functional.softplus(-2 * z[:, 0]), modes),
        (event & bowl, lambda z: nn.functional.softplus(-2 * z[:, 0]) + bowl(z), modes),
        (noisy_event & bowl, bowl, lambda x, s: modes(x, s) + nn.functional.softplus(-x[:, 0] / (0.1 + s**2))),
        (
            noisy_event & event,
            lambda z: nn.functional.softplus(-2 * z[:, 0]),
            lambda x, s: modes(x, s) + nn.functional.softplus(-x[:, 0] / (0.1 + s**2)),
        ),
        (mixture & wide.at(0.2), lambda z: wide(z, sigma=0.2), modes),
    ],
    ids=lambda value: str(value) if isinstance(value, ce.Energy) else "",
)
def test_plain_terms_are_evaluated_at_the_denoised_point(energy, plain, others):
    found = level_gradient(energy, X, SIGMA)
    x = X.clone().requires_grad_()
    values = composed(x, plain, others)
    (expected,) = torch.autograd.grad(values.sum(), x)
    torch.testing.assert_close(found.energy, values.detach())
    torch.testing.assert_close(found.grad, expected, rtol=0.03, atol=0.03)


def test_other_expressions_have_the_gradient_of_their_energy():
    """All terms with noise levels, none, and a single energy."""
    for energy in (mixture & wide, noisy_event, mixture, (wide & mixture) | wide):
        assert not has_plain_terms(energy)
        found, (energies, gradients) = level_gradient(energy, X, SIGMA), energy_and_gradient(energy, X, sigma=SIGMA)
        assert torch.equal(found.energy, energies) and torch.equal(found.grad, gradients) and found.slope is None
    assert not has_plain_terms(bowl & tilt) and has_plain_terms(mixture & bowl)


def test_in_a_mixture_a_plain_term_weighs_its_branch():
    """Far above the energy of the other branch, it leaves the gradient of that one; far below, that of its own."""
    for constant, rest in ((60.0, wide), (-60.0, mixture)):
        term = ce.as_energy(lambda x, constant=constant: constant + 0 * x.sum(1), event_shape=(2,))
        found = level_gradient(ce.any_of(mixture & term, wide, weights=[1.0, 1.0]), X, SIGMA)
        torch.testing.assert_close(found.grad, energy_and_gradient(rest, X, sigma=SIGMA)[1])
        assert found.slope is None  # it does not add, so nothing can be held


def test_a_held_slope_saves_the_plain_term_and_keeps_what_depends_on_noise():
    calls = []
    counted = ce.as_energy(lambda x: calls.append(len(x)) or x @ SLOPE, event_shape=(2,))
    energy = mixture & counted
    first = level_gradient(energy, X, SIGMA)
    assert calls == [40]
    near = X + 0.1
    held = level_gradient(energy, near, SIGMA, first)
    assert calls == [40]
    torch.testing.assert_close(held.grad, level_gradient(energy, near, SIGMA).grad)  # a linear term has one slope


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

"""A diffusion model is the same energy in every parametrisation and schedule, and composes by base and evidence; bad input is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import composable_energy as ce
import composable_energy_diffusion as diffusion
from composable_energy.errors import ExpressionError, LiftError, OptionError, ShapeError
from composable_energy.testing import check_energy
from composable_energy_mcmc.annealing.composed import ComposedDensity
from plugins.diffusion.tests.mixture_models import F64, PROCESSES, mixture, network
from tests.refusals import refusals, refused

PAIRS = [(p, s) for p in diffusion.PARAMETRISATIONS for s in PROCESSES if p != "edm" or s == "edm"]


def sigmas(schedule, fractions: Tensor) -> Tensor:
    low, high = schedule.sigma_range
    return low * (high / low) ** (0.001 + 0.998 * fractions)


@pytest.mark.full
@pytest.mark.parametrize(("parametrisation", "process"), PAIRS)
@settings(max_examples=8, deadline=None)
@given(d=st.sampled_from([1, 2, 8, 32]), seed=st.integers(0, 2**16))
def test_every_parametrisation_and_schedule_gives_the_gradient_of_the_noised_density(parametrisation, process, d, seed):
    schedule, path, time_scale = PROCESSES[process]
    law = mixture(d, seed)
    E = diffusion.DiffusionEnergy(network(law, path, parametrisation, time_scale), schedule, parametrisation)
    g = torch.Generator().manual_seed(seed)
    sigma = sigmas(schedule, torch.rand(6, generator=g, dtype=F64))
    x = law.draw(6, seed) + sigma[:, None] * torch.randn(6, d, generator=g, dtype=F64)
    x.requires_grad_()
    expected = torch.autograd.grad(-law.log_prob(x, sigma).sum(), x)[0]
    energies, gradient = E.with_gradient(x, sigma=sigma)
    assert not energies.any() and ((gradient - expected).norm(dim=1) < 1e-5 * expected.norm(dim=1)).all()


@pytest.mark.parametrize(("parametrisation", "process"), PAIRS)
@given(seed=st.integers(0, 2**16))
@settings(max_examples=10, deadline=None)
def test_outputs_have_the_noise_that_they_are_made_of(parametrisation, process, seed):
    schedule, _, _ = PROCESSES[process]
    g = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 5, 3, 2, generator=g, dtype=F64)
    sigma = sigmas(schedule, torch.rand(5, generator=g, dtype=F64))
    x = clean + sigma.view(-1, 1, 1) * noise
    p, q = (factor.view(-1, 1, 1) for factor in diffusion.PARAMETRISATIONS[parametrisation](schedule, sigma))
    torch.testing.assert_close(diffusion.noise_of(p * clean + q * noise, x, sigma, parametrisation, schedule), noise, rtol=1e-7, atol=1e-7)


class Concepts(nn.Module):
    """An exact model of clean points of three Gaussians, and of a wide one for `y = 3`; it lists the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5], [0.2, 0.1]], dtype=F64))
        self.register_buffer("variances", torch.tensor([1.0, 0.5, 2.0, 4.0], dtype=F64))
        self.calls: list[int] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.means[y] + (self.variances[y] / (self.variances[y] + t**2))[:, None] * (x - self.means[y])

    def score(self, x: Tensor, sigma: float, y: int) -> Tensor:
        return -(x - self.means[y].detach()) / (self.variances[y] + sigma**2)

    def log_prob(self, x: Tensor, sigma: float, y: int) -> Tensor:
        variance = self.variances[y] + sigma**2
        return -(x - self.means[y].detach()).square().sum(1) / (2 * variance) - torch.log(2 * math.pi * variance)


def concepts() -> tuple[Concepts, diffusion.DiffusionEnergy]:
    net = Concepts()
    return net, ce.load("diffusion", model=net, schedule="ve", parametrisation="x0", unconditional={"y": 3}, event_shape=(2,)).eval()


def points(n: int = 7) -> Tensor:
    return 2 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


def expressions(E: diffusion.DiffusionEnergy):
    a, b, c = (E.concept(y=k) for k in range(3))
    no = lambda term: ce.negate(term, mode="power", weight=1.0)
    return {  # the expression, and the weights of the evidence of each class
        "concept": (a, (1, 0, 0)),
        "and": (a & b & c, (1, 1, 1)),
        "guidance": (a.sharpened(5), (5, 0, 0)),
        "and not": ((a & no(b)).sharpened(5), (5, -5, 0)),
        "weights": (a.sharpened(2) & 0.3 * c, (2, 0, 0.3)),
    }


@pytest.mark.parametrize("name", ["concept", "and", "guidance", "and not", "weights"])
@pytest.mark.parametrize("sigma", [0.02, 1.0, 30.0])
def test_composition_is_guidance_by_base_and_evidence(name, sigma):
    net, E = concepts()
    expression, weights = expressions(E)[name]
    base = net.score(x := points(), sigma, 3)
    expected = base + sum(w * (net.score(x, sigma, y) - base) for y, w in enumerate(weights))
    for found in (expression.with_gradient(x, sigma=sigma)[1], expression.at(sigma).with_gradient(x)[1]):
        torch.testing.assert_close(-found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["and", "guidance", "and not"])
def test_a_gradient_evaluates_the_network_once(name):
    """Each concept and the base is a part of one batch."""
    net, E = concepts()
    expression, weights = expressions(E)[name]
    leaves = lambda: ComposedDensity(expression).scores(points(), 2.0)
    for call in (lambda: expression.with_gradient(points(), sigma=2.0), lambda: expression.at(2.0).with_gradient(points()), leaves):
        net.calls.clear()
        call()
        assert net.calls == [7 * (1 + sum(w != 0 for w in weights))]


def test_concepts_beside_other_terms_and_levels_are_batched_where_they_can_be():
    net, E = concepts()
    x, a, b = points(), E.concept(y=0), E.concept(y=1)
    (a & b & ce.as_energy(lambda x: x.square().sum(1))).with_gradient(x, sigma=1.0)
    assert net.calls == [21]
    net.calls.clear()
    mixed = E.given(y=0).at(1.0) & E.given(y=1).at(2.0)  # two levels are two calls
    found = mixed.with_gradient(x)[1]
    assert net.calls == [7, 7]
    torch.testing.assert_close(-found, net.score(x, 1.0, 0) + net.score(x, 2.0, 1))
    rows = E.concept(y=torch.arange(7) % 3) & a  # a class for each point
    net.calls.clear()
    found = rows.with_gradient(x, sigma=1.0)[1]
    base = net.score(x, 1.0, 3)
    torch.testing.assert_close(-found, torch.stack([net.score(x, 1.0, i % 3)[i] for i in range(7)]) + net.score(x, 1.0, 0) - base)
    assert sum(net.calls) == 7 + 14


def with_values() -> tuple[Concepts, diffusion.DiffusionEnergy]:
    net = Concepts()

    def model(x: Tensor, t: Tensor, y: Tensor, net: Concepts = net) -> Tensor:
        return -torch.stack([net.log_prob(x, t, k) for k in range(4)], 1).gather(1, y[:, None])[:, 0]

    return net, diffusion.DiffusionEnergy(model, "ve", "energy", unconditional={"y": 3}, event_shape=(2,))


@pytest.mark.parametrize("sigma", [0.1, 3.0])
def test_a_model_with_energies_has_values_and_negation_by_contrast(sigma):
    net, E = with_values()
    a, b = E.concept(y=0), E.concept(y=1)
    x = points().requires_grad_()
    expected = -net.log_prob(x, sigma, 0) + F.softplus(net.log_prob(x, sigma, 1) - net.log_prob(x, sigma, 3))
    gradient = torch.autograd.grad(expected.sum(), x)[0]
    expression = a & ~b
    assert expression.has_value
    energies, found = expression.with_gradient(x, sigma=sigma)
    torch.testing.assert_close(energies, expected.detach())
    torch.testing.assert_close(found, gradient)
    stronger = expression.sharpened(5).with_gradient(x, sigma=sigma)[1]
    base = -net.score(x.detach(), sigma, 3)
    torch.testing.assert_close(stronger, base + 5 * (gradient - base))


def test_energies_and_concepts_pass_the_kit():
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    unregistered = {"save": "its model was not built by the registry"}
    _, E = concepts()
    check_energy(E.at(1.0), x, expected_failures=unregistered)
    check_energy(E.concept(y=1).at(1.0), x, expected_failures=unregistered)


unit, labelled = lambda x, t: x, lambda x, t, y: x
scheduled = lambda **schedule: diffusion.DiffusionEnergy(unit, schedule)
PICTURES = torch.zeros(3, 4, 2, 2)
DOUBLED, NAMED = (diffusion.DiffusionEnergy(model, "vp") for model in (lambda x, t: torch.cat([x, x], 1), lambda x, t: {"sample": x}))
NO_CONCEPT = r"needs y: give the values of no concept, such as `unconditional=\{'y': 0\}`"
FOUR = diffusion.DiffusionEnergy(lambda x, t, y: x + torch.ones(4, 1)[y], "vp", unconditional={"y": 4})
FEWER_AXES = r"\(3, 4\) for points of shape \(3, 4, 2, 2\)"


test_what_does_not_fit_is_refused = refusals(
    (lambda: diffusion.DiffusionEnergy(unit, "vpp"), OptionError, r"must be one of .*, got 'vpp'\. .*vp"),
    (lambda: scheduled(name="vp", beta=1), OptionError, r"vp takes beta_min, beta_max, time_scale, got beta"),
    (lambda: scheduled(name="ve", sigma_min=3, sigma_max=2), OptionError, "sigma_min must be below sigma_max"),
    (lambda: scheduled(name="vp-discrete", betas="lineer"), OptionError, r"one of linear, scaled-linear, cosine, got 'lineer'"),
    (lambda: scheduled(name="vp-discrete", betas=[0.1, 1.0]), OptionError, "no signal at the last step.*leave that step out"),
    (lambda: diffusion.DiffusionEnergy(unit, "vp", "eps"), OptionError, r"parametrisation must be one of .*'epsilon'.*got 'eps'"),
    (lambda: diffusion.DiffusionEnergy(unit, "vp", "edm"), OptionError, "edm is that of the schedule edm, got the schedule vp"),
    (lambda: diffusion.DiffusionEnergy(3), LiftError, "model must be a module or function of points and times"),
    (lambda: diffusion.DiffusionEnergy(nn.Linear), LiftError, "model must be a module or function of points and times"),
    (lambda: diffusion.DiffusionEnergy(labelled, unconditional={"label": 3}), ExpressionError, "takes no label"),
    (lambda: diffusion.DiffusionEnergy(labelled, "vp").concept(y=1), ExpressionError, NO_CONCEPT),
    (lambda: diffusion.DiffusionEnergy(labelled, "vp", unconditional={"y": 0}).concept(z=1), ExpressionError, "takes no z"),
    (lambda: diffusion.noise_of(torch.zeros(3, 4), PICTURES, torch.ones(3), "epsilon", diffusion.LinearVP()), ShapeError, FEWER_AXES),
    (lambda: DOUBLED.with_gradient(PICTURES, sigma=1.0), ShapeError, "the second half of its channels is a variance"),
    (lambda: NAMED.with_gradient(PICTURES, sigma=1.0), ShapeError, r"gave a dict; return the tensor alone"),
    (lambda: FOUR.with_gradient(torch.zeros(2, 3), sigma=1.0), OptionError, r"failed at y from 4 to 4: .*Give classes that the model has"),
)


@pytest.mark.parametrize("name", diffusion.SCHEDULES)
def test_levels_outside_of_the_schedule_are_refused(name):
    E = diffusion.DiffusionEnergy(unit, name)
    low, high = E.sigma_range
    for sigma in (low, high):
        assert E.with_gradient(torch.ones(2, 1), sigma=sigma)[1].isfinite().all()
    for sigma in (low / 2, 2 * high, 0.0, float("nan")):
        refused(OptionError, f"of its schedule {name}", E.with_gradient, torch.ones(2, 1), sigma=sigma)


def test_what_needs_a_value_is_refused():
    E = diffusion.DiffusionEnergy(labelled, "vp", unconditional={"y": 0}, name="model", event_shape=(1,))
    concept = E.concept(y=1)
    for ask in (
        lambda: concept.sample(3, sampler="hmc", seed=0),
        lambda: E.given(y=1).sample(3, sampler="mala", seed=0),
        lambda: (E.concept(y=2) & ~concept).sample(3, sampler="ode", seed=0),
        lambda: (concept | E.concept(y=2)).sample(3, sampler="sde", seed=0),
        lambda: E.at(1.0)(torch.zeros(2, 1)),
    ):
        refused(ExpressionError, r"values|has a gradient and no value", ask)
    refused(ExpressionError, r"depends on sigma, which is not bound", E.with_gradient, torch.zeros(2, 1))


def test_schedules_come_back_from_their_config():
    schedules = [diffusion.LinearVP(0.2, 10), diffusion.Cosine(time_scale=1000), diffusion.DiscreteVP([0.1, 0.2, 0.3])]
    for schedule in (*schedules, diffusion.RectifiedFlow(True)):
        assert diffusion.schedule_of(schedule.config()) == schedule
    assert diffusion.schedule_of("ve") is not None and {cls().name for cls in diffusion.SCHEDULES.values()} == set(diffusion.SCHEDULES)


class Denoiser(nn.Linear):
    def forward(self, x, t):
        return super().forward(x)


def test_an_energy_is_rebuilt_and_saved_with_its_schedule(tmp_path):
    with ce.register("encoder", "test-denoiser", lambda: Denoiser(2, 2)):
        net = ce.get("encoder", "test-denoiser")
        schedule = {"name": "vp", "beta_min": 0.2, "beta_max": 10}
        E = ce.get("energy", "diffusion", model=net, schedule=schedule, parametrisation="v", event_shape=(2,))
        assert E.rebuild(parametrisation="x0").parametrisation == "x0"
        E.save(tmp_path / "E")
        loaded = ce.load(tmp_path / "E")
    assert loaded.equals(E) and loaded.schedule == diffusion.LinearVP(0.2, 10)

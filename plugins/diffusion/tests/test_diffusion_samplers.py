"""The samplers and the log likelihoods along noise levels: the kit, closed forms within the stated bias, and orders of convergence."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.sampling import Noise
from composable_energy.testing import Check, Gaussian, parametrize_with_checks, sampler_checks
from composable_energy_diffusion import ODE, SDE, DiffusionEnergy, VarianceExploding, log_likelihood
from composable_energy_mcmc import Annealed
from plugins.diffusion.tests.mixture_models import F64, PROCESSES, mixture, network
from tests.refusals import refusals

CHECKS = {
    "ode": sampler_checks(ODE(), bias=0.05),
    "sde": sampler_checks(SDE(), bias=0.05),
    "sde, first order": sampler_checks(SDE(order=1), bias=0.15),
    "sde, no noise": sampler_checks(SDE(eta=0.0), bias=0.05),
}
EXPECTED = {f"{name}: values": "it needs a noise level, which the energy of this check does not have" for name in CHECKS} | {
    f"{name}: {check}": "it draws nothing after the start" for name in ("ode", "sde, no noise") for check in ("noise",)
}
ENDS = {"sigma_min": 0.002, "sigma_max": 80.0}


NAMED = [Check(f"{name}: {check.name}", check.function) for name, checks in CHECKS.items() for check in checks]


@pytest.mark.full
@parametrize_with_checks(NAMED, expected_failures=EXPECTED)
def test_samplers_keep_what_samplers_keep(check: Check) -> None:
    check()


@pytest.mark.parametrize("sampler", [ODE(levels=5), SDE(levels=5), SDE(levels=5, order=1)], ids=str)
def test_a_step_returns_the_state_of_its_points_and_changes_none(sampler):
    energy, noise = Gaussian(torch.zeros(2, dtype=F64)), Noise(seed=0, chains=range(50))
    with torch.no_grad():
        state = sampler.init(energy, sampler.start(torch.zeros(50, 2, dtype=F64), noise), noise)
        for step in range(1, 6):
            before = state.x.clone(), state.grad.clone()
            after, info = sampler.step(energy, state, noise.at(step))
            assert torch.equal(before[0], state.x) and torch.equal(before[1], state.grad)
            torch.testing.assert_close(after.grad, energy.with_gradient(after.x, sigma=sampler.level(min(step + 1, 5)))[1])
            assert info.scalars["sigma"] == sampler.level(step)
            state = after


@pytest.mark.full
@pytest.mark.parametrize("d", [1, 8, 32])
@pytest.mark.parametrize(("sampler", "process"), [("ode", "vp"), ("ode", "flow"), ("sde", "edm"), ("sde", "vp-discrete")])
def test_moments_of_mixtures_are_within_the_stated_bias(sampler, process, d):
    """Means within .05 and variances within 8 per cent, besides the noise of 4,000 draws."""
    schedule, path, time_scale = PROCESSES[process]
    law = mixture(d, seed=d)
    E = DiffusionEnergy(network(law, path, "epsilon", time_scale), schedule, "epsilon", event_shape=(d,))
    x = E.sample(4000, sampler=sampler, seed=0, dtype=F64)
    mean = (law.weights[:, None] * law.means).sum(0)
    variance = (law.weights[:, None] * (law.sds[:, None] ** 2 + (law.means - mean) ** 2)).sum(0)
    assert ((x.mean(0) - mean).abs() < 0.05 + 4.5 * (variance / 4000).sqrt()).all()
    assert ((x.var(0) / variance - 1).abs() < 0.08 + 4.5 * math.sqrt(2 / 4000)).all()


def error(sampler: ODE | SDE) -> float:
    r"""The relative error of the flow of N(0, 1): exact is $x \sqrt{1 / (1 + \sigma^2)}$, up to the last level."""
    x = Gaussian(torch.zeros(1, dtype=F64)).sample((1, 1), sampler=sampler, init=torch.full((1, 1), 7.0, dtype=F64), dtype=F64, seed=0)
    high, low = sampler.level(1), sampler.level(sampler.levels)
    return abs(x.item() / (7 * math.sqrt((1 + low**2) / (1 + high**2)) / (1 + low**2)) - 1)


@pytest.mark.slow
@pytest.mark.parametrize("sampler, options, order", [(ODE, {}, 2), (SDE, {"eta": 0.0}, 2), (SDE, {"eta": 0.0, "order": 1}, 1)], ids=str)
def test_errors_fall_with_the_order_of_the_method(sampler, options, order):
    coarse, fine = (error(sampler(levels=n, sigma_max=20.0, sigma_min=0.01, **options)) for n in (81, 161))
    assert 2 ** (order - 0.35) < coarse / fine < 2 ** (order + 0.35)


def unit(x: Tensor, t: Tensor) -> Tensor:
    """The noise in points of N(0, 1)."""
    return x * t[:, None] / (1 + t[:, None] ** 2)


def test_a_run_reports_its_evaluations():
    calls = []
    E = DiffusionEnergy(lambda x, t: calls.append(len(x)) or unit(x, t), "ve", event_shape=(1,))
    for sampler, expected in ((ODE(levels=9), 17), (SDE(levels=9), 9)):
        calls.clear()
        _, trace = E.sample(5, sampler=sampler, seed=0, trace=True)
        assert trace.scalars["evaluations"][-1] == expected
        calls.clear()
        E.sample(5, sampler=trace.sampler, seed=0)
        assert expected <= calls.count(5) <= expected + 1  # one more may be a check of the energy


def test_levels_are_those_that_all_models_know():
    wide, narrow = (DiffusionEnergy(unit, VarianceExploding(*ends), event_shape=(1,)) for ends in ((0.001, 90.0), (0.02, 30.0)))
    for options, expected in (({}, (0.02, 30.0)), ({"sigma_max": 5.0}, (0.02, 5.0))):
        _, trace = wide.relative_to(narrow).sample(3, sampler="ode", seed=0, trace=True, **options)
        assert (trace.sampler.level(30), trace.sampler.level(1)) == pytest.approx(expected)
    closed = Gaussian(torch.zeros(1))
    closed.recommended = ce.Recommendation("annealed", {"sigma_max": 6.0})
    _, trace = closed.sample(3, sampler="sde", seed=0, trace=True)
    assert trace.sampler.level(1) == pytest.approx(6.0)
    far = ce.as_energy(lambda x, sigma: x.square().sum(1) / (2 * (1e8 + sigma**2)), event_shape=(1,))  # 500 times the usual level
    assert abs(far.sample(500, sampler="sde", seed=0).std() / 1e4 - 1) < 0.1


@pytest.mark.parametrize("ends", [(0.02, 0.5), (2.0, 30.0)])
@pytest.mark.parametrize("sampler", ["ode", "sde"])
def test_models_of_few_levels_are_evaluated_inside_of_them_alone(ends, sampler, tmp_path):
    """Also where the energy is compared with that of a trace or checkpoint."""
    E = DiffusionEnergy(unit, VarianceExploding(*ends), event_shape=(1,))
    with pytest.warns(SamplingWarning, match="the last step takes away") if ends[0] > 1 else nullcontext():
        whole = E.sample(20, sampler=sampler, seed=0, observers=[ce.sampling.Checkpoint(tmp_path / "run")])
        _, trace = E.sample(20, sampler=sampler, seed=0, steps=10, trace=True)
    torch.testing.assert_close(E.sample(20, resume=trace), whole)


@pytest.mark.parametrize("sampler", ["ode", "sde", "annealed", "feynman-kac"])
@pytest.mark.parametrize(("wrong", "declared"), [(0.5, "epsilon"), ("sign", "x0"), (1, "v"), (1, "x0"), (0, "x0"), ("clamp", "x0")])
def test_draws_that_a_model_does_not_denoise_warn(wrong, declared, sampler):
    """Right models are silent in all tests, and draws that need not be those of the density here: at a temperature, from given points."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        clean = x - t[:, None] * unit(x - 2, t)
        return -clean if wrong == "sign" else clean.clamp(1, 3) if wrong == "clamp" else wrong * unit(x - 2, t)

    E = DiffusionEnergy(model, "ve", declared, event_shape=(2,))
    with pytest.warns(SamplingWarning, match="scores: (The model diffusion does not denoise its own draws|Draws of diffusion collapse)"):
        E.sample(256, sampler=sampler, seed=0)
    if wrong == 0.5 and sampler != "feynman-kac":
        E.sample(100, sampler=sampler, seed=0, init=3 * torch.randn(100, 2), sigma_max=2.0)
    if wrong == 0.5 and sampler == "annealed":
        E.sample(100, sampler=sampler, seed=0, temperature=0.5)


def test_a_model_that_refuses_other_batches_keeps_its_draws():
    model = lambda x, t: unit(x, t) * {64: 1.0, 300: 1.0}[len(x)]  # the pilots and the chains
    assert DiffusionEnergy(model, "ve", event_shape=(2,)).sample(300, sampler="sde", seed=0).std() > 0.9


def test_terms_that_count_their_base_twice_warn():
    a, b = (Gaussian(torch.tensor([m])) for m in (1.0, -1.0))
    with pytest.warns(SamplingWarning, match=r"is 2 times that of the Gaussian .*relative to one base"):
        (a & b).sample(3, sampler="ode", seed=0)
    base = Gaussian(torch.tensor([0.0]))
    (a.relative_to(base) & b.relative_to(base)).sample(3, sampler="ode", seed=0)


@pytest.mark.full
@pytest.mark.parametrize(("process", "d"), [("ve", 1), ("vp", 2), ("edm", 6), ("flow", 2)])
def test_exact_divergences_give_the_likelihood_of_mixtures(process, d):
    schedule, path, time_scale = PROCESSES[process]
    law = mixture(d, seed=d)
    E = DiffusionEnergy(network(law, path, "x0", time_scale), schedule, "x0", event_shape=(d,))
    x = law.draw(20)
    found = log_likelihood(E, x, exact=True)
    assert (found.values - law.log_prob(x, torch.zeros(20, dtype=F64))).abs().max() < 0.02
    assert not found.standard_error.any() and found.evaluations == 4 * 39 * (1 + 2 * d) + 1


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 32])
def test_random_signs_are_exact_for_independent_coordinates(d):
    """The divergence of a Gaussian with independent coordinates has no variance under random signs."""
    sd = 0.4
    E = Gaussian(torch.full((d,), 0.3, dtype=F64), sd)
    x = 0.3 + sd * torch.randn(10, d, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = log_likelihood(E, x, probes=2, **ENDS)
    assert (found.values - torch.distributions.Normal(0.3, sd).log_prob(x).sum(1)).abs().max() < 0.02 and found.standard_error.max() < 1e-6


@pytest.mark.full
def test_random_signs_agree_with_the_exact_divergence_within_their_error():
    law = mixture(4, seed=3)
    E = ce.as_energy(lambda x, sigma: -law.log_prob(x, sigma), event_shape=(4,))
    x = law.draw(40)
    found = log_likelihood(E, x, probes=12, levels=25, **ENDS)
    exact = log_likelihood(E, x, exact=True, levels=25, **ENDS).values
    error = (found.standard_error.square().sum().sqrt() / 40).item()
    assert abs((found.values - exact).mean().item()) < 4.5 * error and error > 0.001
    again = log_likelihood(E, x[:7], probes=12, levels=25, **ENDS)
    torch.testing.assert_close(again.values, found.values[:7])  # the directions belong to the points


@pytest.mark.full
def test_the_likelihood_of_guidance_is_that_of_its_draws():
    r"""Two concepts that shift N(0, 1) by $m$: guidance with weight 3 draws N(3 m, 1)."""
    E = DiffusionEnergy(lambda x, t, y: unit(x - 0.5 * y[:, None], t), "ve", unconditional={"y": 0}, event_shape=(1,))
    x = torch.tensor([[1.5], [0.0], [3.0]], dtype=F64)
    found = log_likelihood(E.concept(y=1).sharpened(3), x, exact=True)
    assert (found.values - (-(x[:, 0] - 1.5).square() / 2 - math.log(2 * math.pi) / 2)).abs().max() < 0.02


def test_one_direction_has_no_error_and_no_points_no_likelihood():
    E = Gaussian(torch.zeros(2))
    assert log_likelihood(E, torch.zeros(3, 2), probes=1, levels=5).standard_error.isnan().all()
    assert log_likelihood(E, torch.zeros(0, 2), levels=5).values.shape == (0,)


CLEAN, NORMAL = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(1,)), Gaussian(torch.zeros(1))
LOW, HIGH = (DiffusionEnergy(lambda x, t: x, VarianceExploding(*ends), event_shape=(1,)) for ends in ((0.1, 0.5), (0.6, 3.0)))
NO_LEVELS = "follows noise levels, .* does not depend on sigma: use another"
WRONG_ENDS = {"sigma_min": 1.0, "sigma_max": 0.5}
test_what_does_not_fit_is_refused = refusals(
    *((lambda name=name: CLEAN.sample(3, sampler=name, seed=0), ExpressionError, f"sampler {name} {NO_LEVELS}") for name in ("ode", "sde")),
    *((lambda wrong=wrong: ODE(**wrong), OptionError, None) for wrong in ({"levels": 1}, {"rho": 0}, WRONG_ENDS, {"scale": 0})),
    *((lambda wrong=wrong: SDE(**wrong), OptionError, None) for wrong in ({"eta": 1.5}, {"eta": -0.1}, {"order": 3}, {"order": 0})),
    (lambda: NORMAL.sample(3, sampler=ODE(levels=4), steps=5, seed=0), OptionError, "takes 4 steps"),
    (lambda: (LOW & HIGH).sample(3, sampler="ode", seed=0), OptionError, "no noise level in common"),
    (lambda: log_likelihood(NORMAL, torch.zeros(3, 5)), ShapeError, None),
    (lambda: log_likelihood(CLEAN, torch.zeros(3, 1)), ExpressionError, "does not depend on sigma"),
    *(
        (lambda wrong=wrong: log_likelihood(NORMAL, torch.zeros(3, 1), **wrong), OptionError, None)
        for wrong in ({"levels": 1}, {"probes": 0}, {"exact": "yes"}, WRONG_ENDS)
    ),
)


MEAN, WIDTH = torch.tensor([0.3, -0.5], dtype=F64), torch.tensor([0.5, 1.2], dtype=F64)
SLOPE = torch.tensor([1.5, -0.8], dtype=F64)
score = ce.ScoreEnergy(lambda x, sigma: (MEAN - x) / (WIDTH**2 + sigma[:, None] ** 2), name="score", event_shape=(2,))
gaussian = ce.as_energy(lambda x, sigma: ((x - MEAN).square() / (WIDTH**2 + sigma[:, None] ** 2)).sum(1) / 2, event_shape=(2,))
tilt = ce.as_energy(lambda x: x @ SLOPE, name="tilt", event_shape=(2,))
RANGE = {"sigma_min": 0.01, "sigma_max": 12.0}


@pytest.mark.full
@pytest.mark.parametrize("energy", [score, gaussian], ids=["score", "gaussian"])
@pytest.mark.parametrize("sampler", [ODE(levels=40, **RANGE), SDE(levels=60, **RANGE), Annealed(levels=60, **RANGE)], ids=repr)
def test_a_linear_term_moves_a_gaussian_by_its_variance(energy, sampler):
    """Within four standard errors and the bias of the levels, 3% of a width and 8% of a spread; the move is up to 2.3 widths."""
    n = 3000
    x = (energy & tilt).sample((n, 2), sampler=sampler, seed=0, dtype=F64)
    assert ((x.mean(0) - (MEAN - WIDTH**2 * SLOPE)).abs() / WIDTH < 4 / n**0.5 + 0.03).all()
    assert ((x.std(0) / WIDTH - 1).abs() < 4 / (2 * n) ** 0.5 + 0.08).all()


# Precise terms

CHAINS, SIZE = 500, 8


def denoise(x, t):
    """The clean point of standard normal data."""
    return x / (1 + t[:, None] ** 2)


def measured(deviation: float) -> ce.Energy:
    schedule = {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0}
    data = ce.get("energy", "diffusion", model=denoise, schedule=schedule, parametrisation="x0", event_shape=(SIZE,))
    return data & ce.as_energy(lambda x: (x[:, : SIZE // 2] - 2).square().sum(1) / (2 * deviation**2), event_shape=(SIZE,))


@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
@pytest.mark.full
@pytest.mark.parametrize("sampler", ["sde", "ode", pytest.param("feynman-kac", marks=pytest.mark.slow)])
@pytest.mark.parametrize("deviation", [0.1, 0.3, 1.0])
def test_the_posterior_is_that_of_the_closed_form(deviation, sampler):
    x = measured(deviation).sample(CHAINS, sampler=sampler, seed=0)
    seen, rest = x[:, : SIZE // 2], x[:, SIZE // 2 :]
    mean, width = 2 / (1 + deviation**2), deviation / math.sqrt(1 + deviation**2)
    assert abs(seen.mean() - mean) < 4 * width / math.sqrt(CHAINS * SIZE / 2) + 0.02 * width  # of the levels
    assert abs(seen.std(0).mean() / width - 1) < 0.05 and abs(rest.std(0).mean() - 1) < 0.05


@pytest.mark.full
@pytest.mark.parametrize("sampler", ["sde", "ode", "annealed"])
def test_a_term_more_precise_than_the_lowest_level_warns(sampler):
    with pytest.warns(ce.SamplingWarning, match="precise: A term of .* is more precise than the lowest noise level") as found:
        measured(0.05).sample(64, sampler=sampler, seed=0, sigma_min=0.1)
    assert found[0].filename == __file__

"""Weak evidence and terms without noise levels: draws have the shares of the expression, by quadrature."""

import math

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.score_mixtures import Mixture
from composable_energy.sampling import Trace
from composable_energy_mcmc import Annealed, FeynmanKac

pytestmark = pytest.mark.slow

F64 = torch.float64
MODES = Mixture.of([[-1.5], [1.5]], 0.4, [0.7, 0.3])
BASE = MODES.energy("base", values=True)
BASE.recommended = ce.Recommendation("annealed", {"levels": 25, "sigma_max": 6.0, "sigma_min": 0.05, "corrector_steps": 3, "delta": 0.25})
GRID = torch.linspace(-6, 6, 20_001, dtype=F64)[:, None]


def log_odds(x: Tensor, sigma: Tensor) -> Tensor:
    """Which component a point with noise comes from: the log odds of the right one. They obey the path of the noise exactly."""
    variance = 0.16 + sigma[:, None] ** 2
    return 3 * x / variance + math.log(3 / 7)


right = ce.ClassifierEnergy(log_odds, 1, BASE, name="right")
wide = ce.as_energy(lambda x: torch.nn.functional.softplus(-3 * x[:, 0]), event_shape=(1,), name="a user's network")


def truth(energy: ce.Energy) -> float:
    """The share above 0, by quadrature of the density at data."""
    tiny = torch.full((len(GRID),), 1e-4, dtype=F64)
    p = torch.softmax(-energy(GRID, sigma=tiny), 0)
    return p[GRID[:, 0] > 0].sum().item()


def drawn(energy: ce.Energy, sampler=None, chains: int = 2000, seed: int = 3, **options) -> tuple[float, Trace]:
    x, trace = energy.sample((chains, 1), sampler=sampler, seed=seed, dtype=F64, trace=True, **options)
    return (x > 0).double().mean().item(), trace


def errors(energy: ce.Energy, share: float, trace: Trace) -> float:
    """How many standard errors a share is off, with the lowest effective number of chains."""
    exact = truth(energy)
    count = min(trace.scalars.get("ess", [trace.shape[0]]))
    return abs(share - exact) / math.sqrt(exact * (1 - exact) / count)


@pytest.mark.parametrize(
    "energy", [right.sharpened(0.3), 0.5 * right, right & wide, ce.any_of(right & wide, ~right, weights=[1.0, 1.0])], ids=str
)
@pytest.mark.filterwarnings("ignore::composable_energy.errors.MixtureWarning")
def test_weights_give_the_shares_of_the_expression(energy):
    share, trace = drawn(energy, FeynmanKac(levels=50, sigma_max=6.0, sigma_min=0.02, corrector_steps=1))
    assert trace.scalars["weighted"][-1] == 1
    assert errors(energy, share, trace) < 4


def test_without_weights_weak_evidence_is_far_off():
    """The test above can tell: the same steps without weights are many standard errors away, and `annealed` says so."""
    energy = right.sharpened(0.3)
    share, trace = drawn(energy, FeynmanKac(levels=50, sigma_max=6.0, sigma_min=0.02, weighted=False))
    assert errors(energy, share, trace) > 8
    with pytest.warns(ce.SamplingWarning, match="takes a power below 1 .* modes get wrong shares"):
        share, trace = drawn(energy, Annealed(levels=25, sigma_max=6.0))
    assert errors(energy, share, trace) > 8


def test_weak_evidence_is_drawn_with_weights_by_default():
    share, trace = drawn(right.sharpened(0.3))
    assert isinstance(trace.sampler, FeynmanKac) and trace.sampler.levels == 25
    assert errors(right.sharpened(0.3), share, trace) < 4
    for other in (right, right.sharpened(3), right & wide):
        assert isinstance(other.sample((2, 1), seed=0, dtype=F64, trace=True, steps=1)[1].sampler, Annealed)


def test_annealed_follows_a_plain_term_at_the_denoised_point():
    """Within .03, as the rule is not exact for two modes; the term is evaluated three times a level."""
    calls = []
    counted = ce.as_energy(lambda x: calls.append(len(x)) or torch.nn.functional.softplus(-3 * x[:, 0]), event_shape=(1,))
    share, _ = drawn(BASE & counted)
    assert abs(share - truth(BASE & wide)) < 0.03
    few = len(calls)
    drawn(BASE & counted, levels=35)
    assert len(calls) - few == few + 3 * 10


def test_weights_that_collapse_are_dropped_and_the_summary_says_so():
    """A score sharpened 20 times in 16 coordinates, a Gaussian whose width is known."""
    broad, narrow = (Mixture.of([[0.0] * 16], width).energy(str(width), values=False) for width in (2.0, 0.5))
    energy = narrow.relative_to(broad).sharpened(20)
    with pytest.warns(ce.SamplingWarning, match="collapsed.*from there on the draws follow correctors alone"):
        x, trace = energy.sample((400, 16), sampler=FeynmanKac(levels=100, corrector_steps=3), seed=0, dtype=F64, trace=True)
    assert trace.scalars["weighted"][0] == 1 and trace.scalars["weighted"][-1] == 0 and math.isnan(trace.scalars["ess"][-1])
    assert "weighted" in str(trace.summary())
    assert abs(x.std() / (20 / 0.25 - 19 / 4) ** -0.5 - 1) < 0.15


def test_few_chains_warn_that_weights_correct_nothing():
    with pytest.warns(ce.SamplingWarning, match="only among the chains of a call, and this one has 2"):
        right.sharpened(0.3).sample((2, 1), seed=0, dtype=F64)
    BASE.sample((2, 1), sampler=FeynmanKac(levels=10), seed=0, dtype=F64)  # the density of one leaf needs no weights

"""Infinite energies: expressions are infinite or finite, never NaN, and so are their gradients."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import composable_energy as ce
from tests.factories import complement

SIZE = 1.0


class Box(ce.Energy):
    """A Gaussian of a mean inside a square around 0, infinite outside; its gradient is finite everywhere."""

    def __init__(self, mean: float = 0.0, size: float = SIZE) -> None:
        super().__init__()
        self.event_shape = (2,)
        self.mean, self.size = mean, size

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.abs().amax(1) < self.size, (x - self.mean).square().sum(1) / 2, torch.inf)


class Free(Box):
    """The same Gaussian everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean).square().sum(1) / 2


def linear(outputs: int) -> nn.Linear:
    network = nn.Linear(2, outputs, dtype=torch.float64)
    nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(network.bias)
    return network


U, WIDE, A, B, FREE = Box(), Box(0.0, 2.0), Box(0.5), Box(-0.5), Free(0.2)
POINTS = torch.tensor([[0.1, -0.4], [0.7, 0.3], [1.5, 0.2], [-0.3, -1.7], [2.5, 0.1], [-9.0, 9.0]], dtype=torch.float64)
INSIDE, OUTSIDE = slice(0, 2), slice(2, 6)


def both(energy: ce.Energy) -> tuple[Tensor, Tensor]:
    energies, gradient = energy.with_gradient(POINTS)
    torch.testing.assert_close(energy(POINTS), energies)
    assert not energies.isnan().any(), energy
    assert gradient.isfinite().all(), energy
    return energies, gradient


def test_relative_energies_over_a_bounded_base_are_infinite_where_it_is():
    left, right = A.relative_to(U), B.relative_to(U)
    energies, gradient = both(left & right)
    expected = A(POINTS) + B(POINTS) - U(POINTS)
    torch.testing.assert_close(energies[INSIDE], expected[INSIDE])
    torch.testing.assert_close(gradient[INSIDE], POINTS[INSIDE])
    assert (energies[OUTSIDE] == math.inf).all()
    assert torch.equal(left.evidence(POINTS)[OUTSIDE], torch.zeros(4, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["hmc", "mala"])
def test_chains_over_a_bounded_base_reject_and_do_not_diverge(sampler):
    E = A.relative_to(U) & B.relative_to(U)
    draws, trace = E.sample(200, sampler=sampler, step_size=0.5, steps=60, init=torch.zeros(200, 2), seed=0, trace=True)
    assert not trace.diverged.any()
    assert (draws.abs() < SIZE).all()
    assert trace.acceptance.mean() < 0.95
    # Inside it is the unit Gaussian cut off at 1, whose variance is .291.
    assert abs(draws.var().item() - 0.291) < 0.06


@pytest.mark.parametrize("weight", [0.0, torch.tensor(0.0), torch.tensor(-0.0), nn.Parameter(torch.tensor(0.0))], ids=str)
def test_weight_zero_keeps_the_support(weight):
    for E in (weight * U, U.sharpened(weight), weight * A.relative_to(U), A.relative_to(U).sharpened(weight) & U):
        energies, _ = both(E)
        assert (energies[OUTSIDE] == math.inf).all()
    assert torch.equal((weight * U)(POINTS)[INSIDE], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("value", [0.0, 0.5, -2.0])
def test_a_learnable_weight_has_a_gradient_from_where_energies_are_finite(value):
    weight = nn.Parameter(torch.tensor(value, dtype=torch.float64))
    energies = (weight * U)(POINTS)
    assert (energies[OUTSIDE] == math.copysign(math.inf, value)).all()
    energies[INSIDE].sum().backward()
    torch.testing.assert_close(weight.grad, U(POINTS)[INSIDE].sum())
    weight.grad = None
    energies = (FREE & U.sharpened(weight))(POINTS)
    torch.where(energies.isinf(), 0.0, energies).sum().backward()
    torch.testing.assert_close(weight.grad, U(POINTS)[INSIDE].sum())


def test_a_temperature_that_is_learnt_has_no_nan_gradient():
    temperature = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    energies = (U / temperature)(POINTS)
    assert (energies[OUTSIDE] == math.inf).all()
    energies.sum().backward()
    assert temperature.grad is not None and temperature.grad.isfinite()


def test_differences_keep_the_support_of_the_first():
    energies, _ = both(A - WIDE)
    assert (energies[2:] == math.inf).all()
    energies, _ = both(WIDE - U)
    assert energies.isfinite().tolist() == [True, True, False, False, False, False]
    assert energies[2:].tolist() == [-math.inf, -math.inf, math.inf, math.inf]
    assert (both(U & (WIDE - U))[0][OUTSIDE] == math.inf).all()
    assert (both(U & ce.negate(U, level=0.0))[0][OUTSIDE] == math.inf).all()
    assert (both(-1 * U & A)[0][OUTSIDE] == math.inf).all()


def test_a_mixture_is_infinite_where_all_branches_are():
    energies, gradient = both(A | B)
    assert (energies[OUTSIDE] == math.inf).all()
    assert not gradient[OUTSIDE].any()
    energies, gradient = both(U | FREE)
    torch.testing.assert_close(energies[OUTSIDE], FREE(POINTS)[OUTSIDE])
    torch.testing.assert_close(gradient[OUTSIDE], FREE.with_gradient(POINTS)[1][OUTSIDE])
    both(ce.any_of(A, B, WIDE, weights=[1.0, 2.0, 3.0]))
    both(A.relative_to(U) | B.relative_to(U))
    both(A.relative_to(U) | B)


def test_complements_of_infinite_evidence_are_finite_over_a_finite_base():
    energies, _ = both(~U.relative_to(FREE))
    torch.testing.assert_close(energies[OUTSIDE], FREE(POINTS)[OUTSIDE])
    energies, _ = both(~FREE.relative_to(U))
    assert (energies[OUTSIDE] == math.inf).all()
    red = ce.ClassifierEnergy(linear(2), 0, U, labels=2)
    assert (both(~red)[0][OUTSIDE] == math.inf).all()
    assert (both(ce.negate(red, weight=torch.tensor(0.5)))[0][OUTSIDE] == math.inf).all()


def test_a_broken_point_stays_broken():
    x = torch.full((1, 2), math.nan)
    for E in (
        0.0 * FREE,
        torch.tensor(0.0) * FREE,
        FREE | FREE.sharpened(2.0),
        FREE - FREE.sharpened(0.5),
        FREE & ce.negate(FREE, level=1.0),
        FREE.relative_to(U),
    ):
        assert E(x).isnan().all(), E


def leaves() -> dict[str, ce.Energy]:
    logits = linear(3)
    red, green = (ce.ClassifierEnergy(logits, k, U, labels=3) for k in range(2))
    return {
        "box": U,
        "wide": WIDE,
        "a": A,
        "free": FREE,
        "red": red,
        "green": green,
        "a over u": A.relative_to(U),
        "free over u": FREE.relative_to(U),
        "u over free": U.relative_to(FREE),
        "u over wide": U.relative_to(WIDE),
        "wide over u": WIDE.relative_to(U),
    }


LEAVES = leaves()
DECODER = nn.Identity()
NUMBERS = st.sampled_from([0.0, 0.5, -1.5, torch.tensor(0.0), torch.tensor(-0.7), torch.tensor(1.3)])


def join(children):
    def build(kind, a, b, weight):
        if (a.decoder is None) != (b.decoder is None):  # both spaces have one shape here, so the caller says who lives where
            a, b = (term if term.decoder is not None else term.pull_back(DECODER) for term in (a, b))
        match kind:
            case "and":
                return a & b
            case "or":
                return a | b
            case "minus":
                return a - b
            case "not":
                return complement(a)
            case "power":
                return ce.negate(a, "power")
            case "weigh":
                return weight * a
            case "sharpen":
                return a.sharpened(weight)
            case "pull back":
                return a if a.decoder is not None else a.pull_back(DECODER)
            case _:
                return ce.any_of(a, b, weights=[1.0, 2.0])

    def built(*parts):
        try:
            return build(*parts)
        except ce.errors.ContradictionError:
            return parts[1]

    kinds = ["and", "or", "minus", "not", "power", "weigh", "sharpen", "pull back", "weighted or"]
    return st.builds(built, st.sampled_from(kinds), children, children, NUMBERS)


EXPRESSIONS = st.recursive(st.sampled_from(sorted(LEAVES)).map(LEAVES.__getitem__), join, max_leaves=6)


@pytest.mark.full
@given(EXPRESSIONS)
@settings(max_examples=300, deadline=None)
def test_no_expression_of_bounded_energies_is_nan(energy):
    assume(not energy.unsatisfiable)  # it has no energy, and raises
    both(energy)
    assert not energy.evidence(POINTS).isnan().any()

"""Exclusive or, errors of missing operators, known shares, log densities and scores."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

import composable_energy as ce
from composable_energy.errors import CalibrationError, ExpressionError, MixtureWarning, OperatorError, OptionError
from composable_energy.parsing import parse

F64 = torch.float64
BASE = ce.as_energy(MultivariateNormal(torch.zeros(2, dtype=F64), 4 * torch.eye(2, dtype=F64)), name="base")
X = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
A, B = (ce.ClassifierEnergy(lambda x, k=k: torch.stack([x[:, k], -x[:, k]], 1), 0, BASE, labels=2, name=f"e{k}") for k in range(2))
NEAR, FAR = (ce.as_energy(MultivariateNormal(torch.full((2,), c, dtype=F64), torch.eye(2, dtype=F64)), name=f"n{c}") for c in (-2.0, 2.0))
DRAWS = {"sampler": "hmc", "steps": 2, "seed": 0, "dtype": F64}


def unknown(shift: float = 0.0, name: str = "bowl") -> ce.Energy:
    return ce.as_energy(lambda x: (x - shift).square().sum(1) / 2, name=name, event_shape=(2,))


U, V = unknown(-1.0, "u"), unknown(1.0, "v")


def test_exclusive_or_of_densities_takes_levels():
    expected = -torch.logaddexp(-(U & ce.negate(V, level=3.0))(X), -(ce.negate(U, level=3.0) & V)(X))
    found = (U & ce.negate(V, level=3.0)) | (ce.negate(U, level=3.0) & V)
    torch.testing.assert_close(found(X), expected)
    assert str(U ^ V) == "u & ~v | ~u & v"
    assert (U ^ V).equals((U & ~V) | (~U & V))


def test_exclusive_or_lifts_its_operands_and_is_read_from_text():
    names = {"a": A, "b": B, "c": BASE}
    assert parse("a ^ b").build(names).equals(A ^ B)
    assert parse("a | b ^ ~a & b").build(names).equals(A | (B ^ (~A & B)))
    assert (U ^ (lambda x: x.sum(1))).terms and ((lambda x: x.sum(1)) ^ U).terms
    with pytest.raises(ExpressionError, match=r"write `\^`"):
        parse("a xor b").build(names)


@pytest.mark.parametrize(
    "write", [lambda: U + V, lambda: U + 3, lambda: 3 + U, lambda: -U, lambda: +U, lambda: sum([U, V]), lambda: U**2], ids=range(7)
)
def test_arithmetic_teaches_the_operators(write):
    with pytest.raises(OperatorError, match=r"`A & B`.*`A - B`.*`~A`.*`2 \* A`") as caught:
        write()
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, ExpressionError)


def test_truth_teaches_the_operators():
    for write in (lambda: U and V, lambda: U or V, lambda: not U):
        with pytest.raises(OperatorError, match="`A & B`"):
            write()


def test_a_module_that_a_method_hides_is_refused():
    class Hidden(ce.Energy):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1)

    with pytest.raises(ExpressionError, match="`score` is a method of energies"):
        Hidden()


@pytest.mark.parametrize(
    ("mixture", "shares"),
    [
        (lambda: A | B, "exact"),
        (lambda: U | U, "exact"),
        (lambda: NEAR | FAR, "known"),
        (lambda: NEAR ^ FAR, "known"),
        (lambda: A | BASE, "known"),
        (lambda: (U & ~V) | (U & ~NEAR), "known"),
        (lambda: ~U | ~V, "known"),
        (lambda: U | V, "unknown"),
        (lambda: U ^ V, "unknown"),
        (lambda: NEAR | 2 * FAR, "unknown"),
        (lambda: NEAR | (NEAR & FAR), "unknown"),
        (lambda: A | U, "unknown"),
        (lambda: ce.any_of(U, V, weights=[1, 1]), "chosen"),
        (lambda: ce.Disjunction(U, V, log_z=[0.0, 0.0]), "calibrated"),
    ],
)
def test_what_is_known_of_shares(mixture, shares):
    assert mixture().shares == shares
    assert "shares" in mixture().explain(X).note if shares in ("chosen", "calibrated") else True


@pytest.mark.full
def test_sampling_warns_of_arbitrary_shares_alone():
    for energy in (U | V, BASE & (U | V)):
        with pytest.warns(MixtureWarning, match=r"u \| v mixes .*calibrate.*weights=\[1, 1\]"):
            energy.sample((3, 2), **DRAWS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for energy in (NEAR | FAR, A | B, ce.any_of(U, V, weights=[1, 1])):
            energy.sample((3, 2), **DRAWS)


@pytest.mark.full
def test_one_argument_calibrates():
    mixture = ce.any_of(U, 2 * V, weights=[3, 1], calibrate=True, seed=0, dtype=F64)
    assert isinstance(mixture, ce.Disjunction) and mixture.shares == "calibrated"
    assert mixture.log_z == pytest.approx([math.log(2 * math.pi), math.log(math.pi)], abs=0.1)
    _, trace = mixture.sample((2000, 2), sampler="hmc", steps=60, seed=0, dtype=F64, trace=True)
    assert trace.branch_shares[0].item() == pytest.approx(0.75, abs=0.05)
    assert "(calibrated)" in str(trace.summary()) and "calibrated" in str(mixture.explain(X))
    found = mixture.log_normalizer
    assert found is not None and found.value == pytest.approx(math.log(4)) and 0 < found.standard_error < 0.1
    axis = torch.linspace(-8, 8, 321, dtype=F64)
    integral = mixture.log_prob(torch.cartesian_prod(axis, axis)).exp().sum().item() * 0.05**2
    assert abs(math.log(integral)) < 4 * found.standard_error
    with pytest.raises(OptionError, match="calibrate=True; got seed"):
        ce.any_of(U, V, seed=0)


def test_log_prob_where_the_normaliser_is_known():
    torch.testing.assert_close(NEAR.log_prob(X), MultivariateNormal(torch.full((2,), -2.0, dtype=F64), torch.eye(2, dtype=F64)).log_prob(X))
    mixture = ce.any_of(NEAR, FAR, weights=[1, 3])
    assert mixture.log_normalizer is not None
    torch.testing.assert_close(mixture.log_prob(X), -mixture(X) - math.log(4))
    torch.testing.assert_close(NEAR.relative_to(BASE).log_prob(X), NEAR.log_prob(X))
    torch.testing.assert_close(U.log_prob(X, log_z=math.log(2 * math.pi)), -U(X) - math.log(2 * math.pi))
    for energy in (U, U & V, NEAR & FAR, 2 * NEAR, A):
        assert energy.log_normalizer is None
        with pytest.raises(CalibrationError, match=r"log_z.*calibrate"):
            energy.log_prob(X)


def test_scores_are_gradients_of_the_log_density():
    torch.testing.assert_close(NEAR.score(X), -2.0 - X)
    torch.testing.assert_close((U | V).score(X), torch.func.vmap(torch.func.grad(lambda x: -(U | V)(x[None])[0]))(X))
    model = ce.ScoreEnergy(lambda x: 3 - x, event_shape=(2,))
    torch.testing.assert_close(model.score(X), 3 - X)
    torch.testing.assert_close((model & NEAR).score(X), 3 - X - 2.0 - X)


class Learnt(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return -Normal(self.mean, 1.0).log_prob(x).sum(1)


def test_parameters_learn_from_log_densities_and_scores():
    module = Learnt()
    energy, mean = ce.as_energy(module), module.mean
    x = torch.ones(3, 2)
    (slope,) = torch.autograd.grad(energy.log_prob(x, log_z=0.0).sum(), mean)
    torch.testing.assert_close(slope, torch.full((2,), 3.0))
    (slope,) = torch.autograd.grad(energy.score(x, create_graph=True).sum(), mean)
    torch.testing.assert_close(slope, torch.full((2,), 3.0))
    assert not energy.score(x).requires_grad
    model = nn.Linear(2, 2)
    score = ce.ScoreEnergy(model, event_shape=(2,))
    score.score(x, create_graph=True).sum().backward()
    assert model.bias.grad is not None and torch.equal(model.bias.grad, torch.full((2,), 3.0))
    with pytest.raises(ExpressionError, match="its score has no graph"):
        (score & energy).score(x, create_graph=True)

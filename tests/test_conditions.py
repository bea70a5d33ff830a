"""Conditions: binding, unknown names, rows for each point, and inference of a condition."""

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from tests.factories import points

LABELLED = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1), name="labelled")
OPTIONAL = ce.as_energy(lambda x, label, sigma=1.0: x.square().sum(1) + label, name="optional")
NOISY = ce.as_energy(lambda x, sigma: sigma * x.square().sum(1))
X = points()


def test_conditions_come_as_rows(base):
    labels = torch.arange(5)
    torch.testing.assert_close(LABELLED.given(y=2)(X), (X - 2).square().sum(1))
    torch.testing.assert_close(LABELLED.given(y=labels)(X), (X - labels[:, None]).square().sum(1))
    part = LABELLED.given(y=labels)(X[1:3], chains=slice(1, 3))
    torch.testing.assert_close(part, (X[1:3] - labels[1:3, None]).square().sum(1))
    assert LABELLED.explain(X, y=2).energy.shape == (5,)
    torch.testing.assert_close((OPTIONAL & base).given(label=2)(X), OPTIONAL.given(label=2)(X) + base(X))  # one term takes it
    other = ce.as_energy(lambda x, sigma: sigma + x.sum(1))
    torch.testing.assert_close((NOISY.at(2.0) & other).at(3.0)(X), NOISY.at(2.0)(X) + other.at(3.0)(X))


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (lambda base: LABELLED.given(y=torch.arange(3))(X), ShapeError, r"y has 3 rows .* for 5 points"),
        (lambda base: (LABELLED & base)(X), ExpressionError, r"depends on y, which is not bound: bind it with `.given\(y=...\)`"),
        (lambda base: LABELLED.given(y="red")(X), OptionError, "number or a tensor, got str"),
        (lambda base: OPTIONAL.given(lable=3), ExpressionError, r"optional takes no lable\. Did you mean 'label'\?"),
        (lambda base: OPTIONAL(X, label=1, sgima=1.0), ExpressionError, r"takes no sgima\. Did you mean 'sigma'\?"),
        (lambda base: (OPTIONAL & base).evidence(X, label=1, y=3), ExpressionError, "takes no y"),
        (lambda base: OPTIONAL.with_gradient(X, label=1, y=3), ExpressionError, "takes no y"),
        (lambda base: base.given(y=3), ExpressionError, "takes no y"),
        (lambda base: NOISY.at(2.0).at(3.0), ExpressionError, r"takes no sigma\. It is already bound"),
        (lambda base: NOISY.at(2.0)(X, sigma=3.0), ExpressionError, r"takes no sigma\. It is already bound"),
        (lambda base: LABELLED.infer(X, over={"z": [0.0]}), OptionError, r"got candidates of \['z'\]"),
        (lambda base: LABELLED.infer(X, over={"y": []}), OptionError, "at least one candidate"),
        (lambda base: LABELLED.infer(X, over={"y": torch.tensor(1.0)}), OptionError, "Candidates must be lists"),
    ],
)
def test_wrong_conditions_are_errors(base, write, error, message):
    with pytest.raises(error, match=message):
        write(base)


class Shifted(nn.Module):
    """Depends on a condition with a default."""

    def forward(self, x, y=0.0):
        return x.square().sum(1) + y


@pytest.mark.slow
def test_compiled_modules_keep_their_conditions(base):
    module = Shifted()
    torch.testing.assert_close(ce.as_energy(torch.compile(module, backend="eager")).given(y=2.0)(X), module(X, 2.0))
    assert "y" in ce.ClassifierEnergy(torch.compile(Shifted(), backend="eager"), 1, base).conditions


def test_infer_finds_the_condition_behind_points():
    x, energy = torch.tensor([[0.1, -0.1], [2.9, 3.2]]), 0.5 * LABELLED
    found = energy.infer(x, over={"y": [0.0, 1.0, 3.0]})
    assert [c["y"] for c in found.best] == [0.0, 3.0]
    expected = torch.softmax(torch.stack([-(x - c).square().sum(1) / 2 for c in (0.0, 1.0, 3.0)], 1), 1)
    torch.testing.assert_close(found.probabilities, expected)
    together = energy.infer(x, over={"y": torch.tensor([0.0, 1.5])}, joint=True)
    assert together.probabilities.shape == (1, 2) and together.best[0]["y"] == 1.5


class Embedded(nn.Module):
    """Two numbers that depend on a condition `z`, whose weights must have its dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.layer(z) * x.sum(1, keepdim=True)


def test_bound_conditions_follow_the_points_also_where_to_does_not_reach_them():
    inner = Embedded()
    base = ce.as_energy(lambda x, z: inner(x, z).sum(1).square())
    events = [ce.ClassifierEnergy(Embedded(), 0, base).given(z=torch.ones(1, 3)) for _ in range(2)]
    for energy in (events[0], events[0] & events[1], events[0] | ~events[1]):
        inner.double()
        assert energy.double()(X).dtype == torch.float64

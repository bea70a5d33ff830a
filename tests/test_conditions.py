"""Conditions: binding, unknown names, rows for each point, and inference of a condition."""

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from tests.factories import points


def test_conditions_come_as_rows(base):
    energy = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1), name="energy")
    x = points()
    torch.testing.assert_close(energy.given(y=2)(x), (x - 2).square().sum(1))
    labels = torch.arange(5)
    torch.testing.assert_close(energy.given(y=labels)(x), (x - labels[:, None]).square().sum(1))
    part = energy.given(y=labels)(x[1:3], chains=slice(1, 3))
    torch.testing.assert_close(part, (x[1:3] - labels[1:3, None]).square().sum(1))
    with pytest.raises(ShapeError, match=r"y has 3 rows .* for 5 points"):
        energy.given(y=torch.arange(3))(x)
    with pytest.raises(ExpressionError, match=r"depends on y, which is not bound: bind it with `.given\(y=...\)`"):
        (energy & base)(x)
    with pytest.raises(OptionError, match="number or a tensor, got str"):
        energy.given(y="red")(x)
    assert energy.explain(x, y=2).energy.shape == (5,)


class Shifted(nn.Module):
    """Depends on a condition with a default."""

    def forward(self, x, y=0.0):
        return x.square().sum(1) + y


@pytest.mark.slow
def test_compiled_modules_keep_their_conditions(base):
    module, x = Shifted(), points()
    compiled = torch.compile(module, backend="eager")
    torch.testing.assert_close(ce.as_energy(compiled).given(y=2.0)(x), module(x, 2.0))
    head = ce.ClassifierEnergy(torch.compile(Shifted(), backend="eager"), 1, base)
    assert "y" in head.conditions


def test_names_that_no_term_takes_are_errors(base):
    energy = ce.as_energy(lambda x, label, sigma=1.0: x.square().sum(1) + label, name="energy")
    x = points()
    with pytest.raises(ExpressionError, match=r"energy takes no lable\. Did you mean 'label'\?"):
        energy.given(lable=3)
    with pytest.raises(ExpressionError, match=r"takes no sgima\. Did you mean 'sigma'\?"):
        energy(x, label=1, sgima=1.0)
    with pytest.raises(ExpressionError, match="takes no y"):
        (energy & base).evidence(x, label=1, y=3)
    with pytest.raises(ExpressionError, match="takes no y"):
        energy.with_gradient(x, label=1, y=3)
    with pytest.raises(ExpressionError, match="takes no y"):
        base.given(y=3)
    torch.testing.assert_close((energy & base).given(label=2)(x), energy.given(label=2)(x) + base(x))  # one term takes it


def test_a_second_binding_is_an_error():
    energy = ce.as_energy(lambda x, sigma: sigma * x.square().sum(1))
    other = ce.as_energy(lambda x, sigma: sigma + x.sum(1))
    x = points()
    with pytest.raises(ExpressionError, match=r"takes no sigma\. It is already bound"):
        energy.at(2.0).at(3.0)
    with pytest.raises(ExpressionError, match=r"takes no sigma\. It is already bound"):
        energy.at(2.0)(x, sigma=3.0)
    torch.testing.assert_close((energy.at(2.0) & other).at(3.0)(x), energy.at(2.0)(x) + other.at(3.0)(x))


def test_infer_finds_the_condition_behind_points():
    energy = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1) / 2, name="energy")
    x = torch.tensor([[0.1, -0.1], [2.9, 3.2]])
    found = energy.infer(x, over={"y": [0.0, 1.0, 3.0]})
    assert [c["y"] for c in found.best] == [0.0, 3.0]
    expected = torch.softmax(torch.stack([-(x - c).square().sum(1) / 2 for c in (0.0, 1.0, 3.0)], 1), 1)
    torch.testing.assert_close(found.probabilities, expected)
    together = energy.infer(x, over={"y": torch.tensor([0.0, 1.5])}, joint=True)
    assert together.probabilities.shape == (1, 2) and together.best[0]["y"] == 1.5
    with pytest.raises(OptionError, match=r"got candidates of \['z'\]"):
        energy.infer(x, over={"z": [0.0]})
    with pytest.raises(OptionError, match="at least one candidate"):
        energy.infer(x, over={"y": []})
    for single in (1.0, torch.tensor(1.0)):
        with pytest.raises(OptionError, match="Candidates must be lists"):
            energy.infer(x, over={"y": single})  # pyright: ignore[reportArgumentType]


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
        assert energy.double()(points()).dtype == torch.float64

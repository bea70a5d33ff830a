"""The method of the 2020 paper: its NOT and OR, and trainings that resume."""

import math
from typing import Any

import pytest
import torch

import composable_energy as ce
from benchmarks.papers.compositional_2020 import paper_method
from benchmarks.papers.compositional_2020.paper_method import Method, bounded_not, energy_classifier, expressions, paper_not, paper_or
from benchmarks.papers.compositional_2020.table1 import ROWS, conditions
from composable_energy_scenes import weights


def bowl(center: float) -> ce.Energy:
    return ce.as_energy(lambda x: (x - center).square().sum(1) / 2, event_shape=(1,))


def slope(energy: ce.Energy, x: float) -> float:
    return float(energy.with_gradient(torch.tensor([[x]], dtype=torch.float64))[1])


def test_or_is_an_and_of_energies_that_are_small_and_an_or_of_large_ones():
    """The gradient is a mean of the branches' gradients, here x + 2 and x - 2, whose weights differ only where scaled energies do."""
    left, right = bowl(-2.0), bowl(2.0)
    assert slope(paper_or(left, right, scale=1e-4), 0.5) == pytest.approx(slope(left & right, 0.5) / 2, abs=1e-3)
    assert slope(paper_or(left, right, scale=1e4), 0.5) == pytest.approx(slope(right, 0.5))


def test_the_bounded_complement_ends_where_the_energy_is_high():
    energy = bowl(0.0)
    less = bounded_not(energy, at=8.0, scale=5.0)
    assert slope(less, 1.0) == pytest.approx(-slope(energy, 1.0), rel=1e-6)  # far below 8, as -E
    assert abs(slope(less, 5.0)) < 1e-6  # far above
    x = torch.linspace(-9, 9, 50, dtype=torch.float64)[:, None]
    assert bool((less(x) >= 0).all()) and slope(paper_not(energy, 0.1), 5.0) == pytest.approx(-0.5)


def test_not_of_the_classifier_that_energies_make_is_exact():
    """Two unit Gaussians at -2 and 2: the probability of the left one is sigmoid(-4 x s)."""
    spots = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    event = energy_classifier(lambda k: bowl(float(spots[k])), 2, 0.5)
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close((~event.given(y=0))(x), -torch.nn.functional.logsigmoid(2 * x[:, 0]))
    torch.testing.assert_close((~event.given(y=torch.tensor([0, 1, 0, 1, 0])))(x)[1], -torch.nn.functional.logsigmoid(-2 * x[1, 0]))


def test_every_row_of_the_table_has_an_expression():
    bowls = {concept: lambda values: ce.as_energy(lambda x: x.square().sum(1), event_shape=(1,)) for concept in paper_method.CONCEPTS}
    method = Method(bowls, lambda energy, n, seed: torch.empty(0), 0.01, 1.0)
    rows = expressions(method, conditions(4, 3))
    assert rows.keys() == {row.text for row in ROWS}
    x = torch.tensor([[3.0]])  # where each concept has the energy 9
    wanted = {"position & ~color": 9 - 0.09, "position & color & shape & size": 36.0}
    for text, energy in wanted.items():
        assert float(rows[text](x)) == pytest.approx(energy)
    assert float(rows["(position1 & color1) | (position2 & color2)"](x)) == pytest.approx(18 - math.log(2))


@pytest.mark.slow
def test_weights_keep_energies(tmp_path):
    networks = {concept: paper_method.network(concept) for concept in paper_method.CONCEPTS}
    for concept, network in networks.items():
        weights.write(network, f"paper-{concept}", tmp_path)
    x = torch.rand(4, 3, paper_method.SIZE, paper_method.SIZE)
    y: dict[str, Any] = {"position": torch.rand(4, 2), "color": torch.arange(4), "shape": torch.arange(4) % 3, "size": torch.rand(4)}
    for concept, energy in paper_method.load(tmp_path).items():
        torch.testing.assert_close(energy(x, y=y[concept]), networks[concept].eval()(x, y=y[concept]), rtol=0.01, atol=1e-3)


@pytest.mark.full
def test_a_training_goes_on(tmp_path, monkeypatch):
    for name, value in {"EACH": 16, "K": 1, "BATCH": 4, "BUFFER": 8}.items():
        monkeypatch.setattr(paper_method, name, value)
    for steps in ({"position": 1, "size": 2}, {"position": 3}):
        paper_method.train(tmp_path / "runs", steps, to=tmp_path / "some", progress=False)
    paper_method.train(tmp_path / "other", {"position": 3}, to=tmp_path / "once", progress=False)
    first, second = (
        weights.read(paper_method.network("position"), "paper-position", tmp_path / name).state_dict() for name in ("some", "once")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)

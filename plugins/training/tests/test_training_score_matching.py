"""Denoising score matching and the contrast of labels against closed forms, and weighted sums of objectives."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_training import CombinedObjective, ContrastiveDivergence, DenoisingScoreMatching, EnergyDiscrepancy, LabelContrast
from plugins.training.tests.objective_helpers import LANGEVIN, Net, batch_of, cast, context, data, gradients


class NoisyBell(ce.Energy):
    """The energy of N(mean, variance) with noise of any level; what is to be learnt are mean and variance."""

    def __init__(self, mean: float, variance: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.variance = nn.Parameter(torch.tensor(variance, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (x - self.mean).square().sum(1) / (2 * (self.variance + sigma.square()))


def test_denoising_is_least_at_the_density_of_the_data():
    """At the truth the error is $v / (v + s^2)$ at each level, averaged over log s; and the gradient has mean zero."""
    rows, low, high, mean, variance = 200_000, 0.3, 3.0, 0.7, 0.5
    model = NoisyBell(mean, variance)
    loss = DenoisingScoreMatching(low, high).loss(model, batch_of(mean + math.sqrt(variance) * data(rows, 1)))
    expected = 1 - math.log((variance + high**2) / (variance + low**2)) / (2 * math.log(high / low))
    assert abs(loss.value.item() - expected) < 4 * math.sqrt(2 / rows)
    by_mean, by_variance = gradients(model, loss)
    assert abs(by_mean) < 4 * 2 / math.sqrt(rows) and abs(by_variance) < 4 * 2 / math.sqrt(rows)
    for wrong in (NoisyBell(mean + 0.3, variance), NoisyBell(mean, 2 * variance), NoisyBell(mean, variance / 2)):
        assert DenoisingScoreMatching(low, high).loss(wrong, batch_of(mean + math.sqrt(variance) * data(rows, 1))).value > loss.value


def test_noise_levels_are_log_uniform_and_belong_to_rows():
    seen = []

    class Watch(ce.Energy):
        def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
            seen.append((sigma, y))
            return x.square().sum(1) * sigma

    rows, objective = 4000, DenoisingScoreMatching(0.01, 10.0, condition="kind")
    x, kind = data(rows, 2), torch.arange(rows)
    whole = objective.loss(Watch(), batch_of(x, kind=kind)).value
    first, rest = (
        objective.loss(Watch(), batch_of(x[part.start : part.stop], 1, part, kind=kind[part.start : part.stop])).value
        for part in (range(999), range(999, rows))
    )
    torch.testing.assert_close((999 * first + (rows - 999) * rest) / rows, whole, rtol=1e-12, atol=0)
    sigma, y = seen[0]
    assert torch.equal(torch.cat([seen[1][0], seen[2][0]]), sigma) and torch.equal(y, kind)
    share = sigma.log().sub(math.log(0.01)).div(math.log(1000)).sort().values
    expected = (torch.arange(rows) + 0.5) / rows
    assert (share - expected).abs().max() < 1.95 / math.sqrt(rows)  # Kolmogorov and Smirnov's distance, a thousandth beyond


class Table(ce.Energy):
    """Linear energies, one row of weights for each of five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(data(5, 2, seed=1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * self.rows[y]).sum(1)


def test_with_all_classes_it_is_cross_entropy():
    x, kind, model = data(12, 2), torch.arange(12) % 5, Table()
    loss = LabelContrast("kind", classes=range(5)).loss(model, batch_of(x, kind=kind))
    logits = -x @ model.rows.T
    torch.testing.assert_close(loss.value, F.cross_entropy(logits, kind))
    assert loss.scalars["accuracy"] == (logits.argmax(1) == kind).double().mean()
    squares = LabelContrast("kind", classes=range(5), l2=0.5).loss(model, batch_of(x, kind=kind)).value - loss.value
    torch.testing.assert_close(squares, 0.5 * logits.gather(1, kind[:, None]).square().mean())


def test_energies_of_other_classes_are_left_alone():
    x, kind, model = data(12, 2), 1 + 2 * (torch.arange(12) % 2), Table()
    for objective in (LabelContrast("kind"), LabelContrast("kind", classes=(3, 1))):
        changed = gradients(model, objective.loss(model, batch_of(x, kind=kind)))[0].abs().sum(1) > 0
        assert changed.tolist() == [False, True, False, True, False]


def test_the_loss_is_the_weighted_sum_with_noise_of_its_own_for_each():
    x, kind, model = data(8, 2), torch.arange(8) % 3, Net(3)
    batch, parts = batch_of(x, kind=kind), (LabelContrast("kind"), EnergyDiscrepancy(0.5))
    combined = CombinedObjective(*parts, weights=(0.5, 2.0)).loss(model, batch)
    twice = CombinedObjective(EnergyDiscrepancy(0.5), EnergyDiscrepancy(0.5)).loss(model, batch).value
    assert twice != 2 * CombinedObjective(EnergyDiscrepancy(0.5)).loss(model, batch).value
    without = CombinedObjective(*parts, weights=(0.0, 2.0)).loss(model, batch).value
    torch.testing.assert_close(combined.value - without, 0.5 * parts[0].loss(model, batch).value)
    assert combined.scalars["margin"] == parts[0].loss(model, batch).scalars["margin"]


def test_states_of_all_parts_are_saved_and_restored():
    def fresh():
        part = ContrastiveDivergence(**LANGEVIN, buffer=8, start="normal")
        combined = CombinedObjective(LabelContrast("kind"), part, part)
        combined.begin(Net(3), context(8, (2,)))
        return combined

    first, second = fresh(), fresh()
    batch = batch_of(data(8, 2), kind=torch.arange(8) % 3)
    first.loss(Net(3), batch)
    assert sorted(first.state()) == ["1.slots", "2.slots"]
    assert not torch.equal(first.state()["1.slots"], second.state()["1.slots"])
    second.restore({name: value.clone() for name, value in first.state().items()})
    assert all(torch.equal(value, second.state()[name]) for name, value in first.state().items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CombinedObjective(), "got 0 and 0 weights"),
        (lambda: CombinedObjective(EnergyDiscrepancy(1.0), weights=[1, 2]), "got 1 and 2 weights"),
        (lambda: CombinedObjective(EnergyDiscrepancy(1.0), weights=[-1]), "weights must be a number of at least 0, got -1"),
        (lambda: CombinedObjective(cast("contrast")), "A sum needs objectives"),
    ],
)
def test_bad_sums_are_reported(make, message):
    with pytest.raises(OptionError, match=message):
        make()

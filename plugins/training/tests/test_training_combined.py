"""The contrast of labels against cross entropy, and weighted sums of objectives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_training import CombinedObjective, ContrastiveDivergence, EnergyDiscrepancy, LabelContrast
from plugins.training.tests.objective_helpers import LANGEVIN, Net, batch_of, cast, context, data, gradients


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


def test_pictures_keep_their_shape():
    class Pictures(Table):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x[:, 0, 0], y)

    x, kind = data(6, 1, 3, 2), torch.arange(6) % 3
    flat = LabelContrast("kind").loss(Table(), batch_of(x[:, 0, 0], kind=kind))
    assert LabelContrast("kind").loss(Pictures(), batch_of(x, kind=kind)).value == flat.value


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

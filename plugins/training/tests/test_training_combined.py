"""Weighted sums of objectives."""

import pytest
import torch

from composable_energy.errors import OptionError
from composable_energy_training import CombinedObjective, ContrastiveDivergence, EnergyDiscrepancy, LabelContrast
from plugins.training.tests.objective_helpers import LANGEVIN, Net, batch_of, cast, context, data


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

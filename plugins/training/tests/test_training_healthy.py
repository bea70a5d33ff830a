"""The monitor with its default thresholds: healthy runs pass, diverging ones stop, and the error says how to go on."""

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_training import (
    ContrastiveDivergence,
    EnergyDiscrepancy,
    GaussianNoise,
    LabelContrast,
    Monitor,
    NoiseContrastive,
    Optimizer,
    Trainer,
)
from composable_energy_training.monitor import TrainingDiverged
from plugins.training.tests.run_helpers import Scripted, trainer


class Bumps(ce.Energy):
    """A small network plus a quadratic, whose zero is where the last bias puts it."""

    def __init__(self, size: int = 2, level: float = 0.0, classes: int = 1) -> None:
        super().__init__()
        self.event_shape, self.classes = (size,), classes
        self.net = nn.Sequential(nn.Linear(size, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, classes))
        torch.nn.init.constant_(self.net[4].bias, level)

    def forward(self, x, y=None):
        energies = self.net(x) + x.square().sum(1, keepdim=True) / 2
        return energies[:, 0] if y is None else energies.gather(1, y[:, None])[:, 0]


def ring(count=2000):
    angle = 2 * torch.pi * torch.rand(count)
    return 1.5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(count, 2)


def chains(step_size, steps):
    return ContrastiveDivergence(steps=steps, options={"step_size": step_size}, start="normal", l2=0.0, buffer=1000)


def fit(objective, data, steps, *, model=None, rate=3e-3, seed=0):
    torch.manual_seed(seed)
    data = data()
    model = Bumps(**(model or {}))
    return Trainer(
        model, objective, data, steps=steps, batch_size=128, seed=seed, optimizer=Optimizer(rate=rate), monitor=Monitor("stop")
    ).fit()


@pytest.mark.full
def test_a_ring_is_trained_to_its_end():
    """Its gap passes 0.6 at step 81, while chains come to the ring: half of the spread of the energies."""
    assert fit(chains(0.005, 20), ring, 120).alerts == ()


@pytest.mark.slow
def test_energies_of_many_coordinates_are_not_large():
    """Draws of a Gaussian in 100 dimensions have energies of 50, with a spread of 7."""
    assert fit(chains(0.02, 2), lambda: torch.randn(1000, 100), 60, model={"size": 100}, rate=1e-3).alerts == ()


@pytest.mark.slow
def test_the_zero_of_an_energy_is_arbitrary():
    assert fit(chains(0.02, 2), ring, 60, model={"level": 30.0}, rate=1e-4).alerts == ()


@pytest.mark.parametrize(
    ("objective", "classes"),
    [
        (NoiseContrastive(GaussianNoise(torch.zeros(2), 8 * torch.eye(2))), 1),
        (EnergyDiscrepancy(variance=4.0), 1),
        (LabelContrast(condition="y", l2=0.0), 2),
    ],
)
def test_the_margin_of_an_objective_without_chains_is_what_it_learns(objective, classes):
    """The energies of data and of other points or classes differ by more than 0.5, which is no instability."""

    def data():
        x = ring()
        return (x, {"y": (x[:, 0] > 0).long()}) if classes > 1 else x

    report = fit(objective, data, 70, model={"classes": classes}, rate=1e-2)
    assert report.alerts == () and report.scalars["margin"] > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_diverging_run_stops_with_an_error_that_names_the_monitor(seed):
    """Chains of two tiny steps do not follow the energy, which grows without bound."""
    with pytest.raises(TrainingDiverged, match=r"The trainer's `monitor` stopped .*Monitor\((gap|magnitude)=None\)") as caught:
        fit(chains(0.0002, 2), ring, 200, seed=seed)
    assert caught.value.step < 150


@pytest.mark.parametrize(("scalars", "cause"), [({"gap": 2.0, "spread": 0.1}, "gap"), ({"gap": 2.0, "spread": 1.0}, None)])
def test_a_gap_counts_beyond_three_spreads_of_the_energies(scalars, cause):
    run = trainer(Scripted({name: lambda step, seed, value=value: value for name, value in scalars.items()}), Monitor("stop", window=3))
    if cause is None:
        assert run.fit().alerts == ()
    else:
        with pytest.raises(TrainingDiverged, match=f"mean {cause} over the last 3 steps is 2, beyond 0.5"):
            run.fit()


@pytest.mark.parametrize("options", [{"gap": "large"}, {"acceptance": "x"}, {"window": 2.5}, {"factor": None}, {"limit": "x"}])
def test_thresholds_of_another_type_are_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        Monitor(**options)

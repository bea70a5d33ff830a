"""Planted faults: the conformance kit catches each with a message that names it, once, and passes the correct twin."""

from collections.abc import Callable

import pytest
import torch

import composable_energy as ce
from composable_energy.testing import check_energy
from composable_energy_image.testing import check_encoder, check_world
from composable_energy_training.testing import check_recipe
from tests import faulty_plugins as faulty
from tests.faulty_plugins import SETTINGS, TEXTS

POINTS = torch.tensor([[0.3, -1.2], [1.1, 0.4], [-0.7, 0.9], [2.0, 0.1]])


def energy(cls: type[ce.Energy], build: Callable[[], ce.Energy]) -> Callable[[], None]:
    def check() -> None:
        with ce.register("energy", "planted", cls):
            check_energy(build, POINTS)

    return check


def encoder(cls) -> Callable[[], None]:
    return lambda: check_encoder(cls, POINTS)


def recipe(cls, texts=TEXTS, settings=SETTINGS) -> Callable[[], None]:
    return lambda: check_recipe(lambda: cls("fit", *texts, settings), faulty.number_file())


def world(cls, *arguments) -> Callable[[], None]:
    return lambda: check_world(lambda: cls(*arguments))


WITHOUT_SEED = {"data": SETTINGS["data"], "training": {"steps": 10, "device": "none"}}

# The faulty plug-in, its correct twin, the check that catches it, and words of its message.
FAULTS = {
    "energy: config misses an option": (
        energy(faulty.ForgetsAnOption, lambda: faulty.ForgetsAnOption(4.0)),
        energy(faulty.Bowl, lambda: faulty.Bowl(4.0)),
        "save",
        "other energies",
    ),
    "energy: an option is misspelt": (
        energy(faulty.Bowl, lambda: ce.load("planted", powr=4.0)),
        energy(faulty.Bowl, lambda: ce.load("planted", power=4.0)),
        "build",
        "'planted' takes .*power",
    ),
    "encoder: the batch is centred": (encoder(faulty.CentresTheBatch), encoder(faulty.Encoder), "rows", "alone and in a batch"),
    "encoder: dropout is never off": (encoder(faulty.AlwaysDropsOut), encoder(faulty.Encoder), "randomness", "random numbers from torch"),
    "encoder: no gradient": (encoder(faulty.WithoutGradient), encoder(faulty.Encoder), "gradient", "detached from the inputs"),
    "encoder: a tensor is not saved": (encoder(faulty.HidesATensor), encoder(faulty.Encoder), "state", "parameter or buffer"),
    "encoder: an unused layer": (encoder(faulty.LeavesALayerOut), encoder(faulty.Encoder), "weights", "no gradient reaches middle"),
    "recipe: no source": (recipe(faulty.Fit, ("A bowl", "", *TEXTS[2:])), recipe(faulty.Fit), "texts", "source is empty"),
    "recipe: no seed": (recipe(faulty.Fit, settings=WITHOUT_SEED), recipe(faulty.Fit), "settings", "no setting training.seed"),
    "recipe: another seed each time": (
        recipe(faulty.DrawsWithoutSeed),
        recipe(faulty.Fit),
        "repeat",
        "different weights: model.safetensors",
    ),
    "recipe: any setting is accepted": (recipe(faulty.TakesAnySetting), recipe(faulty.Fit), "changes", "a setting that does not exist"),
    "world: noise in pictures": (world(faulty.NoisySquares), world(faulty.Squares), "seed", "depends on the batch, or on earlier calls"),
    "world: pictures of floats": (world(faulty.FloatSquares), world(faulty.Squares), "shape", "float64, expected uint8"),
    "world: an unnamed class": (world(faulty.ThreeTones), world(faulty.Squares), "labels", "from 0 to 2, its field names 2"),
    "world: an option is forgotten": (world(faulty.ForgetsItsSize, 8, 2), world(faulty.Squares, 8), "options", "of that name"),
}


@pytest.mark.full
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_and_named_once_and_its_correct_twin_passes(name):
    fault, twin, check, words = FAULTS[name]
    with pytest.raises(AssertionError, match=rf"  {check}: .*{words}"):
        fault()
    twin()

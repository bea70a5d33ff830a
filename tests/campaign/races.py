"""Processes that write, read, sample and train in one place at the same time."""

import os
import random
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

import composable_energy as ce
from composable_energy.errors import StorageError
from composable_energy_training import Callback, Trainer
from plugins.training.tests.run_helpers import Scripted, trainer
from tests.campaign.crashes import CALL, names_in
from tests.campaign.faults import begin, end
from tests.campaign.runner import Area, check
from tests.sampling_runs import BOWL
from tests.saving_energies import normal

_STEPS = 6


def at_once(calls: Sequence[Callable[[], int | None]]) -> None:
    """Runs each call in a forked process; one that raises is a defect."""
    failed = [text for code, text in [end(*child) for child in [begin(call) for call in calls]] if code]
    check(not failed, "race", [text[-400:] for text in failed[:2]])


def alone(place: Path, last: bool) -> None:
    """Checks at each step of a run that no other process runs in the same place; the last step ends the run."""
    own = place / str(os.getpid())
    own.touch()
    check(not (set(names_in(place)) - {own.name}), "race", "two processes hold one lock")
    time.sleep(0.002)
    if last:
        own.unlink()


def write(folder: Path, mean: float) -> None:
    """Saves twenty times."""
    for _ in range(20):
        normal(mean).save(folder)


def read(folder: Path) -> None:
    """Loads fifty times, and checks each."""
    for _ in range(50):
        found = ce.load(folder).config()["distribution"].mean
        check(found[0] == found[1] and found[0].item() in (0.0, 1.0, 2.0), "silent wrong answer", found)


@cache
def wanted() -> torch.Tensor:
    """Returns the draws of an undisturbed run."""
    return BOWL.sample((4, 3), **{**CALL, "steps": _STEPS})


def sample(place: Path) -> int:
    """Samples with a checkpoint that others use too; returns whether it was free."""
    observe = lambda step, state, info: alone(place / "busy", step == _STEPS)
    try:
        watch = [ce.sampling.Stop(observe), ce.sampling.Checkpoint(place / "run" / "c", every=0)]
        found = BOWL.sample((4, 3), observers=watch, **{**CALL, "steps": _STEPS})
    except StorageError:
        return 0
    check(torch.equal(found, wanted()), "silent wrong answer", "two processes with a checkpoint")
    return 1


class Alone(Callback):
    """Checks at each step that no other process trains in the folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def on_step(self, trainer: Trainer, scalars: object) -> None:
        alone(self.place / "busy", trainer.step == _STEPS)


def train(place: Path) -> int:
    """Trains in a folder that others use too; returns whether it was free."""
    try:
        trainer(Scripted({}), None, out=place / "run", steps=_STEPS, checkpoint_every=2, callbacks=[Alone(place)]).fit()
    except StorageError:
        return 0
    return 1


def race(chance: random.Random, place: Path) -> str:
    (place / "busy").mkdir()
    match chance.randrange(6):
        case 0 | 1:
            saved = place / "saved"
            normal(0.0).save(saved)
            at_once([*[lambda mean=mean: write(saved, mean) for mean in (1.0, 2.0)], *[lambda: read(saved)] * chance.choice([1, 2, 6])])
            check(len(names_in(saved)) == 1 and names_in(place) == ["busy", "saved"], "left behind", names_in(saved))
            return "readers and writers"
        case 2 | 3 | 4:
            at_once([lambda: sample(place)] * chance.choice([2, 3, 4]))
            check(sample(place) == 1, "race", "a lock is held after all ended")
            check(names_in(place / "run") == ["c"], "left behind", names_in(place / "run"))
            return "several processes with a checkpoint"
        case _:
            at_once([lambda: train(place)] * 2)
            check(train(place) == 1, "race", "a lock is held after all ended")
            check(not [name for name in names_in(place / "run") if name.startswith(".")], "left behind", names_in(place / "run"))
            return "several processes that train in a folder"


RACES = Area("races", lambda folder: race, 180)

"""Processes that write, read, sample and train in one place at the same time."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import composable_energy as ce
from composable_energy.errors import StorageError
from composable_energy_training import Callback, Trainer
from plugins.training.tests.run_helpers import Scripted, trainer
from tests.campaign.crashes import CALL, names_in, normal
from tests.campaign.trial import Area, Trial, check
from tests.checkpoint_runs import BOWL

_STEPS = 6


def at_once(calls: Sequence[Callable[[], int | None]]) -> list[int]:
    """Runs each call in a forked process; returns their numbers.

    Raises:
        Defect: One of them raised an error.
    """
    pipes, children = [], []
    for call in calls:
        here, there = os.pipe()
        child = os.fork()
        if child == 0:
            text = "error: it ended without an answer"
            try:
                text = str(call() or 0)
            except BaseException as error:
                text = f"error: {type(error).__name__}: {error}"
            finally:
                os.write(there, text.encode()[:4000])
                os._exit(0)
        os.close(there)
        pipes.append(here)
        children.append(child)
    answers = []
    for here, child in zip(pipes, children, strict=True):
        with os.fdopen(here, "rb") as pipe:
            answers.append(pipe.read().decode())
        os.waitpid(child, 0)
    failed = [answer for answer in answers if not answer.isdigit()]
    check(not failed, "race", failed[:2])
    return [int(answer) for answer in answers]


def alone(place: Path, last: bool) -> None:
    """Checks at each step of a run that no other process runs in the same place; the last step ends the run."""
    own = place / str(os.getpid())
    own.touch()
    others = set(names_in(place)) - {own.name}
    check(not others, "race", "two processes hold one lock")
    time.sleep(0.002)
    if last:
        own.unlink()


def write(folder: Path, mean: float, until: Callable[[int], bool]) -> int:
    """Saves until a function of the number of saves returns True; returns that number."""
    count = 0
    while not until(count):
        normal(mean).save(folder)
        count += 1
    return count


def read(folder: Path, until: Callable[[int], bool]) -> int:
    """Loads until a function of the number of loads returns True, and checks each; returns that number."""
    count = 0
    while not until(count):
        found = ce.load(folder).config()["distribution"].mean
        check(found[0] == found[1] and found[0].item() in (0.0, 1.0, 2.0), "silent wrong answer", found)
        count += 1
    return count


def sample(place: Path, wanted: torch.Tensor) -> int:
    """Samples with a checkpoint that others use too; returns whether it was free."""
    observe = lambda step, state, info: alone(place / "busy", step == _STEPS)
    try:
        found = BOWL.sample(
            (4, 3), observers=[ce.sampling.Stop(observe), ce.sampling.Checkpoint(place / "run" / "c", every=0)], **{**CALL, "steps": _STEPS}
        )
    except StorageError:
        return 0
    check(torch.equal(found, wanted), "silent wrong answer", "two processes with a checkpoint")
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


def prepare_races(folder: Path) -> Trial:
    wanted = BOWL.sample((4, 3), **{**CALL, "steps": _STEPS})

    def trial(chance: random.Random, place: Path) -> str:
        (place / "busy").mkdir()
        match chance.randrange(6):
            case 0 | 1:
                saved = place / "saved"
                normal(0.0).save(saved)
                writers = [lambda mean=mean: write(saved, mean, lambda count: count == 4) for mean in (1.0, 2.0)]
                at_once([*writers, *[lambda: read(saved, lambda count: count == 12)] * chance.choice([1, 2, 6])])
                check(len(names_in(saved)) == 1 and names_in(place) == ["busy", "saved"], "left behind", names_in(saved))
                return "readers and writers"
            case 2 | 3 | 4:
                at_once([lambda: sample(place, wanted)] * chance.choice([2, 3, 4]))
                check(sample(place, wanted) == 1, "race", "a lock is held after all ended")
                check(names_in(place / "run") == ["c"], "left behind", names_in(place / "run"))
                return "several processes with a checkpoint"
            case _:
                at_once([lambda: train(place)] * 2)
                check(train(place) == 1, "race", "a lock is held after all ended")
                check(not [name for name in names_in(place / "run") if name.startswith(".")], "left behind", names_in(place / "run"))
                return "several processes that train in a folder"

    return trial


RACES = Area("races", prepare_races, 180)

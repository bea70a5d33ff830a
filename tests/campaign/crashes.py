"""Kills and failing disks at any system call that writes, and kills at any time."""

from __future__ import annotations

import errno
import functools
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import composable_energy as ce
from composable_energy.errors import FileFormatError
from composable_energy.files import digest_of
from composable_energy_training import CSVLog
from plugins.training.tests.run_helpers import Scripted, read_log, trainer
from tests.campaign.faults import KILLED, Faults, in_child
from tests.campaign.trial import Area, Trial, check
from tests.checkpoint_runs import BOWL

CALL = {"sampler": "mala", "step_size": 0.1, "seed": 0, "steps": 4}
_ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES)


def normal(mean: float) -> ce.Energy:
    """Returns the energy of a normal distribution, whose mean tells which save is in a folder."""
    return ce.as_energy(torch.distributions.Normal(torch.full((2,), mean), 1.0))


def names_in(folder: Path) -> list[str]:
    """Returns the names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


class Saving:
    """A save into a new folder or over another one."""

    def __init__(self, chance: random.Random, folder: Path) -> None:
        self.folder, self.before = folder / "saved", chance.random() < 0.7
        if self.before:
            self.energy(1.0).save(self.folder)
        self.next = self.energy(2.0)

    @staticmethod
    def energy(mean: float) -> ce.Energy:
        """Returns what is saved."""
        return normal(mean)

    def run(self) -> None:
        self.next.save(self.folder)

    def check(self) -> str:
        found = self._mean()
        check(found in ((1.0, 2.0) if self.before else (None, 2.0)), "lost file", found)
        normal(3.0).save(self.folder)
        check(self._mean() == 3.0, "silent wrong answer", "the save after a failure is another one")
        check(names_in(self.folder.parent) == ["saved"], "left behind", names_in(self.folder.parent))
        check(len(names_in(self.folder)) == 1, "left behind", names_in(self.folder))
        return "new" if found == 2.0 else "old"

    def _mean(self) -> float | None:
        try:
            return ce.load(self.folder).config()["distribution"].mean[0].item()
        except FileFormatError as error:
            check("holds no saved energy" in str(error), "half-written file", error)
            return None


class Sampling:
    """A run with a checkpoint at each step."""

    def __init__(self, chance: random.Random, folder: Path) -> None:
        self.path = folder / "run" / "c"

    def run(self) -> torch.Tensor:
        return BOWL.sample((4, 3), observers=[ce.sampling.Checkpoint(self.path, every=0)], **CALL)

    def check(self) -> str:
        began = self.path.exists()
        check(torch.equal(self.run(), BOWL.sample((4, 3), **CALL)), "silent wrong answer", "a resumed run has other draws")
        check(names_in(self.path.parent) == ["c"], "left behind", names_in(self.path.parent))
        return "resumed" if began else "begun anew"


@functools.cache
def trained_weights() -> str:
    """Returns the digest of the weights after a training that nothing broke off."""
    run = trainer(Scripted({}), None, steps=6, checkpoint_every=2)
    run.fit()
    return digest_of(run.model.state_dict())


class Training:
    """A run of a trainer with a log."""

    def __init__(self, chance: random.Random, folder: Path) -> None:
        self.folder = folder / "run"

    def run(self) -> str:
        run = trainer(Scripted({}), None, out=self.folder, steps=6, checkpoint_every=2, callbacks=[CSVLog(1)])
        run.fit()
        return digest_of(run.model.state_dict())

    def check(self) -> str:
        began = (self.folder / "checkpoints").exists()
        check(self.run() == trained_weights(), "silent wrong answer", "a resumed run has other weights")
        steps = [int(row["step"]) for row in read_log(self.folder)]
        check(steps == [1, 2, 3, 4, 5, 6], "silent wrong answer", f"the log has the steps {steps}")
        left = {*names_in(self.folder)} | {name for name in names_in(self.folder / "checkpoints") if not name.startswith("step-")}
        check(left == {"checkpoints", "log.csv"}, "left behind", left)
        return "resumed" if began else "begun anew"


WORKS: dict[str, Callable[[random.Random, Path], Saving | Sampling | Training]] = {
    "save": Saving,
    "sampling": Sampling,
    "training": Training,
}
"""What is killed, runs out of disk or memory, or meets a clock that jumps."""


def some_work(chance: random.Random, folder: Path) -> Saving | Sampling | Training:
    """Returns one of the works; training takes the longest and is the rarest."""
    return WORKS[chance.choices(list(WORKS), [6, 3, 1])[0]](chance, folder)


def kills(name: str) -> Area:
    """Returns the area that kills one of the works."""

    def prepare(folder: Path) -> Trial:
        def trial(chance: random.Random, place: Path) -> str:
            work = WORKS[name](chance, place)
            if chance.random() < 0.7:
                code, text = in_child(work.run, Faults(chance.randrange(24), place))
                check(code in (0, KILLED), "untyped error", text[-400:])
            else:
                killed_at_random(work.run, chance)
            return work.check()

        return trial

    return Area(f"kills in {name}", prepare, 120)


def killed_at_random(call: Callable[[], Any], chance: random.Random) -> None:
    """Runs a call in a process that is killed after a random time."""
    child = os.fork()
    if child == 0:
        try:
            call()
        finally:
            os._exit(0)
    time.sleep(chance.choice([0.001, 0.01, 0.05]) * chance.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def prepare_disk(folder: Path) -> Trial:
    def trial(chance: random.Random, place: Path) -> str:
        work = some_work(chance, place)
        if chance.random() < 0.7:
            code, text = in_child(work.run, Faults(chance.randrange(24), place, chance.choice(_ERRORS)))
        else:
            size = chance.randrange(0, 4000)
            code, text = in_child(lambda: (resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)), work.run()))
        check(code == 0 or text.startswith("composable_energy.errors.StorageError"), "untyped error", f"{code}: {text[-400:]}")
        return f"{type(work).__name__.lower()}: {'no effect' if code == 0 else 'StorageError'}, {work.check()}"

    return trial


KILLS = [kills(name) for name in WORKS]
DISK = Area("full disk", prepare_disk, 120)

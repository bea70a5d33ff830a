"""Saving, sampling and training under kills, failing disks and clocks that jump, and their memory over many calls."""

import errno
import gc
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch

import composable_energy as ce
from composable_energy.errors import FileFormatError
from composable_energy.files import digest_of
from composable_energy_training import CSVLog
from plugins.training.tests.run_helpers import Scripted, read_log, trainer
from tests.campaign.faults import KILLED, Faults, begin, end, in_child
from tests.campaign.runner import Area, Outcome, Trial, check
from tests.sampling_runs import BOWL, same
from tests.saving_energies import normal

CALL = {"sampler": "mala", "step_size": 0.1, "seed": 0, "steps": 4}
_JUMPS = (-1e9, -86400.0, -3600.0, -1.0, 1.0, 3600.0, 86400.0, 1e9, 7e9)  # seconds; from 1994 to 2248
_SAMPLINGS, _LOADS = 200, 20  # of a trial
_SLACK = 16 * 2**20  # bytes that the allocator may keep
_ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES)


def names_in(folder: Path) -> list[str]:
    """Returns the names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


class Saving:
    """A save into a new folder or over another one."""

    def __init__(self, chance: random.Random, folder: Path) -> None:
        self.folder, self.before = folder / "saved", chance.random() < 0.7
        if self.before:
            normal(1.0).save(self.folder)
        self.next = normal(2.0)

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


def sampled(*observers: ce.sampling.Observer) -> tuple[torch.Tensor, ce.sampling.Trace]:
    """Draws in chunks, with a trace."""
    return BOWL.sample((8, 3), trace=2, batch_size=3, observers=observers, **CALL)


class Sampling:
    """A run with a checkpoint at each step."""

    def __init__(self, chance: random.Random, folder: Path) -> None:
        self.path = folder / "run" / "c"

    def run(self) -> tuple[torch.Tensor, ce.sampling.Trace]:
        return sampled(ce.sampling.Checkpoint(self.path, every=0))

    def check(self) -> str:
        began = self.path.exists()
        found, wanted = self.run(), sampled()
        check(torch.equal(found[0], wanted[0]), "silent wrong answer", "a resumed run has other draws")
        same(found, wanted)
        check(names_in(self.path.parent) == ["c"], "left behind", names_in(self.path.parent))
        return "resumed" if began else "begun anew"


@cache
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


WORKS = {"save": Saving, "sampling": Sampling, "training": Training}
"""What is killed, runs out of disk, or meets a clock that jumps."""


def some_work(chance: random.Random, folder: Path) -> Saving | Sampling | Training:
    """Returns one of the works; training takes the longest and is the rarest."""
    return WORKS[chance.choices(list(WORKS), [6, 3, 1])[0]](chance, folder)


def kill(name: str, chance: random.Random, place: Path) -> str:
    """Kills one of the works, at a system call that writes or at any time."""
    work = WORKS[name](chance, place)
    if chance.random() < 0.7:
        code, text = in_child(work.run, Faults(chance.randrange(24), place))
        check(code in (0, KILLED), "untyped error", text[-400:])
    else:
        child, pipe = begin(work.run)
        time.sleep(chance.choice([0.001, 0.01, 0.05]) * chance.random())
        os.kill(child, signal.SIGKILL)
        end(child, pipe)
    return work.check()


def fill_disk(chance: random.Random, place: Path) -> str:
    """Lets a system call fail, or limits the size of files."""
    work = some_work(chance, place)
    if chance.random() < 0.7:
        code, text = in_child(work.run, Faults(chance.randrange(24), place, chance.choice(_ERRORS)))
    else:
        size = chance.randrange(0, 4000)
        code, text = in_child(lambda: (resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)), work.run()))
    check(code == 0 or text.startswith("composable_energy.errors.StorageError"), "untyped error", f"{code}: {text[-400:]}")
    return f"{type(work).__name__.lower()}: {'no effect' if code == 0 else 'StorageError'}, {work.check()}"


def jumping(clock: Callable[[], float], chance: random.Random, jumps: Sequence[float]) -> Callable[[], float]:
    """Returns a clock that jumps at one of its readings in three."""
    offset = 0.0

    def read() -> float:
        nonlocal offset
        if chance.random() < 1 / 3:
            offset += chance.choice(jumps)
        return clock() + offset

    return read


def turn_clocks(chance: random.Random, place: Path) -> str:
    """Lets the clock of the wall jump to and fro; and the one that never runs back jump forward, as after a machine has slept."""
    work, sleep = some_work(chance, place), chance.random() < 0.7

    def run() -> None:
        time.time = jumping(time.time, random.Random(chance.random()), _JUMPS)
        if sleep:
            time.monotonic = jumping(time.monotonic, random.Random(chance.random()), _JUMPS[5:])
        work.run()
        if chance.random() < 0.5:
            for path in (path for path in place.rglob("*") if path.is_file()):
                os.utime(path, (chance.choice([0, 2**31, 2**33]),) * 2)

    code, text = in_child(run)
    check(code == 0, "untyped error", text[-400:])
    found = work.check()
    check(found in ("new", "resumed"), "lost file", f"{type(work).__name__}: {found}")
    return f"{type(work).__name__.lower()}: {found}"


def memory() -> int:
    """Returns the memory of this process in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def prepare_leaks(folder: Path) -> Trial:
    normal(1.0).save(folder / "saved")

    def work(count: int, place: Path) -> None:
        for i in range(count):
            options = {"observers": [ce.sampling.Checkpoint(place / "c")]} if i % 10 == 0 else {}
            BOWL.sample((4, 3), **{**CALL, "seed": i, "steps": 2}, **options)
            (place / "c").unlink(missing_ok=True)
            if i % (_SAMPLINGS // _LOADS) == 0:
                ce.load(folder / "saved")(ce.load(folder / "saved").config()["distribution"].mean[None])

    work(_SAMPLINGS, folder)  # what is kept for the next call is there after this
    first, files = memory(), names_in(Path("/proc/self/fd"))

    def trial(chance: random.Random, place: Path) -> Outcome:
        before = memory()
        work(_SAMPLINGS, place)
        now = memory()
        check(now - first < _SLACK, "memory", f"{(now - first) / 2**20:.1f} MiB more than at the start")
        check(names_in(Path("/proc/self/fd")) == files, "open files", f"{names_in(Path('/proc/self/fd'))}, were {files}")
        return {"samplings": _SAMPLINGS, "loads": 2 * _LOADS, "KiB gained": (now - before) // 1024}

    return trial


KILLS = [Area(f"kills in {name}", lambda folder, name=name: partial(kill, name), 120) for name in WORKS]
DISK = Area("full disk", lambda folder: fill_disk, 120)
CLOCKS = Area("clocks", lambda folder: turn_clocks, 120)
LEAKS = Area("leaks", prepare_leaks, 400)

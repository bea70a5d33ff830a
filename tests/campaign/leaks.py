"""Memory and open files over many samplings and loads in one process."""

from __future__ import annotations

import gc
import random
import resource
from pathlib import Path

import composable_energy as ce
from tests.campaign.crashes import CALL, names_in, normal
from tests.campaign.trial import Area, Outcome, Trial, check
from tests.checkpoint_runs import BOWL

_SAMPLINGS, _LOADS = 200, 20  # of a trial
_SLACK = 16 * 2**20  # bytes that the allocator may keep


def memory() -> int:
    """Returns the memory of this process in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def prepare(folder: Path) -> Trial:
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


AREA = Area("leaks", prepare, 400)

"""Clocks that jump: what is asked for is right, and nothing is half-written."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from tests.campaign.crashes import some_work
from tests.campaign.faults import in_child
from tests.campaign.trial import Area, Trial, check

_JUMPS = (-1e9, -86400.0, -3600.0, -1.0, 1.0, 3600.0, 86400.0, 1e9, 7e9)  # seconds; from 1994 to 2248


def jumping(clock: Callable[[], float], chance: random.Random, jumps: tuple[float, ...]) -> Callable[[], float]:
    """Returns a clock that jumps at one of its readings in three."""
    offset = 0.0

    def read() -> float:
        nonlocal offset
        if chance.random() < 1 / 3:
            offset += chance.choice(jumps)
        return clock() + offset

    return read


def set_clocks(chance: random.Random, sleep: bool) -> None:
    """Lets the clock of the wall jump to and fro; and the one that never runs back jump forward, as after a machine has slept."""
    time.time = jumping(time.time, random.Random(chance.random()), _JUMPS)
    if sleep:
        time.monotonic = jumping(time.monotonic, random.Random(chance.random()), _JUMPS[5:])


def prepare_clocks(folder: Path) -> Trial:
    def trial(chance: random.Random, place: Path) -> str:
        work, sleep = some_work(chance, place), chance.random() < 0.7

        def run() -> None:
            set_clocks(chance, sleep)
            work.run()
            if chance.random() < 0.5:
                for path in (path for path in place.rglob("*") if path.is_file()):
                    os.utime(path, (chance.choice([0, 2**31, 2**33]),) * 2)

        code, text = in_child(run)
        check(code == 0, "untyped error", text[-400:])
        found = work.check()
        check(found in ("new", "resumed"), "lost file", f"{type(work).__name__}: {found}")
        return f"{type(work).__name__.lower()}: {found}"

    return trial


CLOCKS = Area("clocks", prepare_clocks, 120)

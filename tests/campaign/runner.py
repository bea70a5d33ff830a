"""Runs areas in forked processes, detects hangs, keeps counts in a JSON file for each area, from which a later call continues."""

import json
import os
import random
import select
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from composable_energy.errors import ComposableEnergyError

Outcome = str | dict[str, int]
"""What a trial found, in one or two words; or how often each of several things happened."""

Trial = Callable[[random.Random, Path], Outcome]
"""A trial takes its random numbers and an empty folder."""
_EVERY = 10.0  # seconds between two writings of the counts
_KEPT = 50  # defects described in the file; all are counted
_MEMORY = Path("/dev/shm")  # a file system in memory: a trial syncs many files, and the fault layer itself loses what is not synced


class Defect(Exception):  # noqa: N818
    """A trial found a defect; the text begins with its kind."""


@dataclass(frozen=True)
class Area:
    """An area of the campaign: `prepare` returns the trial, once in each process; a trial of more than `limit` seconds hangs."""

    name: str
    prepare: Callable[[Path], Trial]
    limit: float = 60.0


def typed(call: Callable[[], Any], allowed: tuple[type[BaseException], ...] = ()) -> tuple[Any, str]:
    """Returns the result of a call and "", or None and the name of its error, which is of the library or one that is allowed."""
    try:
        return call(), ""
    except (ComposableEnergyError, *allowed) as error:
        return None, type(error).__name__
    except Exception as error:
        raise Defect(f"untyped error: {type(error).__name__}: {str(error)[:300]}") from error


def check(condition: bool, kind: str, detail: object = "") -> None:
    """Raises a defect unless a condition holds."""
    if not condition:
        raise Defect(f"{kind}: {detail}")


@dataclass
class Counts:
    """The counts of an area, whose trial `i` is a function of the area, the seed and `i`; `processor` is the time of all its processes."""

    area: str
    seed: int
    trials: int = 0
    processor: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    defects: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[int, str]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Counts the trial with the next number."""
        if isinstance(outcome, str) and outcome.startswith("defect: "):
            text = outcome.removeprefix("defect: ")
            self.examples = [*self.examples, (self.trials, text)][:_KEPT]
            self.defects = _sum(self.defects, {text.partition(":")[0].partition("\n")[0]: 1})
        else:
            self.outcomes = _sum(self.outcomes, outcome if isinstance(outcome, dict) else {outcome: 1})
        self.trials += 1


def load_counts(folder: Path, area: str, seed: int) -> Counts:
    """Returns the counts of an earlier call with the same seed, or new ones."""
    path = folder / f"{area}-{seed}.json"
    return Counts(**json.loads(path.read_text())) if path.exists() else Counts(area, seed)


def save_counts(folder: Path, counts: Counts) -> None:
    """Writes the counts of an area."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{counts.area}-{counts.seed}.{os.getpid()}"
    fresh.write_text(json.dumps(asdict(counts), indent=1))
    fresh.replace(folder / f"{counts.area}-{counts.seed}.json")


def run_area(
    area: Area, seed: int, seconds: float, out: Path, most: int | None = None, until: Callable[[Counts], bool] = lambda counts: False
) -> Counts:
    """Runs at most so many trials of an area until the time is over or the counts suffice; `out` is the folder of the counts."""
    counts = load_counts(out, area.name, seed)
    first, began, worked = counts.trials, time.monotonic(), _processor()

    def is_over() -> bool:
        return time.monotonic() - began > seconds or (most is not None and counts.trials - first >= most) or until(counts)

    while not is_over():
        folder = Path(tempfile.mkdtemp(prefix="campaign-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None))
        here, there = os.pipe()
        if (child := os.fork()) == 0:
            os.close(here)
            _serve(area, seed, counts.trials, there, folder)
        os.close(there)
        try:
            _listen(here, counts, area.limit, is_over, out)
        finally:
            os.close(here)
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            shutil.rmtree(folder, ignore_errors=True)
    counts.processor += _processor() - worked
    save_counts(out, counts)
    return counts


def _listen(pipe: int, counts: Counts, limit: float, is_over: Callable[[], bool], out: Path) -> None:
    """Counts the answers of a process until it ends or hangs, or all is over."""
    os.set_blocking(pipe, False)
    buffer, last, written = b"", time.monotonic(), time.monotonic()
    while not is_over():
        ready, _, _ = select.select([pipe], [], [], 0.2)
        if data := os.read(pipe, 65536) if ready else None:
            *lines, buffer = (buffer + data).split(b"\n")
            last = time.monotonic() if lines else last
            for line in lines:
                if not is_over():
                    counts.add(json.loads(line))
        elif data == b"":
            counts.add("defect: process ended: the process of the trials ended without an answer")
            return
        elif time.monotonic() - last > limit:
            counts.add(f"defect: hang: no answer within {limit:g} s")
            return
        if time.monotonic() - written > _EVERY:
            written = time.monotonic()
            save_counts(out, counts)


def merge(folder: Path) -> dict[str, Counts]:
    """Returns the counts of all files in a folder, added up for each area."""
    total: dict[str, Counts] = {}
    for path in sorted(folder.glob("*.json")):
        counts = Counts(**json.loads(path.read_text()))
        whole = total.setdefault(counts.area, Counts(counts.area, counts.seed))
        whole.trials, whole.processor = whole.trials + counts.trials, whole.processor + counts.processor
        whole.outcomes, whole.defects = _sum(whole.outcomes, counts.outcomes), _sum(whole.defects, counts.defects)
        whole.examples += [(number, f"seed {counts.seed}: {text}") for number, text in counts.examples]
    return total


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """Adds up counts, of which some, such as gained memory, may be negative."""
    return {kind: one.get(kind, 0) + other.get(kind, 0) for kind in {**one, **other}}


def _processor() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _serve(area: Area, seed: int, first: int, pipe: int, folder: Path) -> None:
    """Runs trials for ever, and writes a line for each."""
    os.setpgid(0, 0)
    try:
        trial, number = area.prepare(folder / "prepared"), first
        while True:
            place = folder / str(number)
            place.mkdir()
            try:
                answer = trial(random.Random(f"{area.name} {seed} {number}"), place)
            except Defect as error:
                answer = f"defect: {error}"
            except BaseException:
                answer = f"defect: error of the trial\n{traceback.format_exc()[-2000:]}"
            shutil.rmtree(place, ignore_errors=True)
            os.write(pipe, f"{json.dumps(answer)}\n".encode())
            number += 1
    except BrokenPipeError:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)

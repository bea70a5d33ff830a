"""Runs the campaign: `python -m tests.campaign --minutes 10`; prints the counts, and exits with 1 if there is a defect."""

import argparse
import gc
import os
import secrets
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch._dynamo  # the optimizers of torch load it at first use, and so would each process of trials
from PIL import Image

from tests.campaign import crashes, races, sampling
from tests.campaign.runner import Counts, merge, run_area
from tests.hostile import AREA as HOSTILE

_CRASHES = (*crashes.KILLS, crashes.DISK, crashes.CLOCKS, crashes.LEAKS)
AREAS = {area.name: area for area in (*_CRASHES, races.RACES, sampling.NUMERICS, sampling.COMMANDS, HOSTILE)}
_ROUNDS = 4  # an area runs so often, so that a campaign that is broken off has counts of all


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the campaign with the words of a command line, by default those of the process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="the time of the whole campaign (default: 2)")
    parser.add_argument("--trials", type=int, help="the largest number of trials of each area")
    parser.add_argument("--areas", default=",".join(AREAS), help="their names, separated by commas")
    parser.add_argument("--seed", type=int, help="the seed (default: a new one, which is printed); with a seed used before it continues")
    parser.add_argument("--processes", type=int, help="how many run at once, with consecutive seeds (default: as the machine has cores)")
    parser.add_argument("--out", type=Path, default=Path(".campaign"), help="the folder of the counts (default: .campaign)")
    parser.add_argument("--report", action="store_true", help="only print the counts of the folder")
    options = parser.parse_args(arguments)
    Image.init()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # what is imported stays shared with the processes of trials, which are forked
    if options.report:
        return report(merge(options.out))
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    children = []
    for i in range(options.processes or (1 if options.trials else os.cpu_count() or 1)):
        if (child := os.fork()) == 0:
            code = 1
            try:
                run(options, seed + i, i)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    failed = max(os.waitpid(child, 0)[1] for child in children) > 0
    return report(merge(options.out)) or int(failed)


def run(options: argparse.Namespace, seed: int, process: int) -> None:
    """Runs the areas one after another; each process begins with another one."""
    names = options.areas.split(",")
    first = process * len(names) // 2
    rounds = 1 if options.trials else _ROUNDS
    for name in [*names[first:], *names[:first]] * rounds:
        counts = run_area(AREAS[name], seed, options.minutes * 60 / len(names) / rounds, options.out, options.trials)
        print(f"{name}: {counts.trials} trials, {sum(counts.defects.values())} defects", flush=True)


def report(total: dict[str, Counts]) -> int:
    """Prints a table of all counts and the defects; returns 1 if there is one."""
    print("\n| area | trials | seconds of a processor | outcomes | defects |\n|---|---:|---:|---|---:|")
    for name, counts in total.items():
        outcomes = ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.outcomes.items(), key=lambda item: -item[1])[:6])
        print(f"| {name} | {counts.trials:,} | {counts.processor:,.0f} | {outcomes} | {sum(counts.defects.values())} |")
    print(f"| all | {sum(c.trials for c in total.values()):,} | {sum(c.processor for c in total.values()):,.0f} | | |")
    for name, counts in total.items():
        for kind, count in counts.defects.items():
            print(f"\n{name}: {count} times {kind}")
        for number, text in counts.examples[:5]:
            print(f"  trial {number} of {text[:1500]}")
    return int(any(counts.defects for counts in total.values()))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)

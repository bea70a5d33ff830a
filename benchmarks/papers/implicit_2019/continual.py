r"""Classes that come two at a time, without replay of earlier pictures (the slides' Split MNIST, after Hsu et al., 2019).

    make real-data
    python -m benchmarks.papers.implicit_2019.continual [--sets scikit-learn digits fashion] [--write]

Five tasks of two classes each; after each, a learner is asked for one of all classes so far. No learner keeps a picture. One conditional
energy is trained in four ways; its negatives have the classes of the present task, or those so far. Beside it: softmax, a
class-conditional VAE, and heads over a frozen autoencoder, which saw the first task's pictures alone, or all pictures without labels.
`joint` is the softmax network on all pictures.

The sets are scikit-learn's digits, divided into 1,397 and 400 by the seed, digits of MNIST, and Fashion-MNIST. Settings were chosen on the
first, with the seeds 100 and 101; all learners take the same number of steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.handwritten import LabelledPixels, load_digits, load_real
from benchmarks.papers.experiment import IMPLICIT
from benchmarks.papers.implicit_2019.continual_learners import CLASSES, LEARNERS, Learner, fit_base, heads

TASKS = [(first, first + 1) for first in range(0, CLASSES, 2)]
HEADS = {"heads, base of the first task": True, "heads, base of all pictures": False}
SETS = ("digits", "fashion")  # of `make real-data`
STEPS, SEEDS = 100, (0, 1, 2, 3, 4)
PAPER = {"energy": (0.6499, 0.0427), "VAE": (0.4004, 0.0131)}  # Split MNIST, on the slides


def make(name: str, digits: LabelledPixels, seed: int) -> Learner:
    """Returns a learner that has seen nothing; the base of heads has seen pictures without labels."""
    if name not in HEADS:
        return LEARNERS[name](digits.size, seed)
    seen = digits.train[digits.train_labels < 2] if HEADS[name] else digits.train
    return heads(seed, fit_base(seen, seed))


def by_tasks(learner: Learner, digits: LabelledPixels, steps: int) -> list[float]:
    """Learns task after task, and returns the accuracy among the classes so far after each."""
    found = []
    for task in TASKS:
        rows = (digits.train_labels[:, None] == torch.tensor(task)).any(1)
        learner.learn((learner.prepare(digits.train[rows]), {"digit": digits.train_labels[rows]}), steps, task)
        asked = digits.test_labels <= task[1]
        found.append(learner.accuracy(digits.test[asked], digits.test_labels[asked]))
    return found


def joint(digits: LabelledPixels, steps: int, seed: int) -> float:
    """Returns the accuracy of the softmax network on all pictures at once."""
    learner = LEARNERS["softmax"](digits.size, seed)
    learner.learn((digits.train, {"digit": digits.train_labels}), len(TASKS) * steps)
    return learner.accuracy(digits.test, digits.test_labels)


def spread(values: list[float]) -> dict[str, Any]:
    """Returns the mean of some seeds and their standard deviation."""
    return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values) if len(values) > 1 else 0.0, "seeds": values}


def run(args: Any) -> Iterator[dict[str, Any]]:
    figures: dict[str, Any] = {"paper": PAPER, "sets": {}}
    for name in args.sets:
        data = {seed: load_real(name, seed) if name in SETS else load_digits(seed) for seed in args.seeds}
        joint_accuracy = spread([joint(data[seed], args.steps, seed) for seed in args.seeds])
        figures["sets"][name] = {"pictures": len(data[args.seeds[0]].train), "joint": joint_accuracy, "tasks": {}}
        for learner in (*LEARNERS, *HEADS):
            found = [by_tasks(make(learner, data[seed], seed), data[seed], args.steps)[-1] for seed in args.seeds]
            figures["sets"][name]["tasks"][learner] = spread(found)
            print(name, learner, figures["sets"][name]["tasks"][learner]["mean"], flush=True)
            yield figures


if __name__ == "__main__":
    IMPLICIT.run("continual", __doc__, run, sets=("scikit-learn", *SETS), seeds=SEEDS, steps=STEPS)

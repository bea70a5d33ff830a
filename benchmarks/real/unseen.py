"""Combinations that no picture of the training shows: letters by `&` of attributes, beside one network conditioned on all attributes.

    make real-data
    python -m benchmarks.real.unseen [--seed 0] [--samples 300] [--write]

The recipe `base-and-attributes` learns from letters without any of `UNSEEN`. The other network has the codes and the decoder of the base,
the size and the steps of the recipe's networks, and all attributes at once as a condition. The judge says for which share of the pictures,
or of real letters, a combination holds: of held-out fonts, and of the fonts that are learnt from, whose letters were left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import RESULTS, environment, run_benchmark
from benchmarks.real.__main__ import train
from benchmarks.real.data import RealSet, open_set
from benchmarks.real.judges import fulfils, load_judge
from composable_energy_cli.parsing import parse
from composable_energy_image.base_and_attributes import base_and_attributes
from composable_energy_image.code_energy import CodeNetwork
from composable_energy_image.network_training import seeded, train_network
from composable_energy_training import DenoisingScoreMatching

UNSEEN = ("bold & italic & serif", "monospaced & italic & ~bold", "handwritten & bold & capital")
NAMES = ("bold", "italic", "capital", "serif", "monospaced", "handwritten")


def attributes(real: RealSet, images: Tensor, marks: Any) -> Tensor:
    """Returns the attributes of `NAMES` as numbers of 1 and -1, with shape $(N, 6)$."""
    truths = real.truths(images, marks)
    return torch.stack([truths[name] for name in NAMES], 1).float() * 2 - 1


def train_conditioned(real: RealSet, base: Any, folder: Any, seed: int) -> CodeNetwork:
    """Returns a network over the codes of a base, conditioned on all attributes."""
    part, settings = real.library, dict(base_and_attributes().settings["base"])
    with torch.no_grad():
        codes = torch.cat([base.decoder.encode(some) for some in part.images.split(500)])
    with seeded(seed, "conditioned"):
        network = CodeNetwork(codes.shape[1], conditions=len(NAMES), balanced=True)
    objective = DenoisingScoreMatching(base.sigma_min, base.sigma_max, condition="attributes", scale=1.0)
    train_network(folder, network, objective, (codes, {"attributes": attributes(real, part.images, part.marks)}), seed=seed, **settings)
    return network.eval().requires_grad_(False)


def run(args: Any) -> Iterator[dict[str, Any]]:
    """Yields all rows after each combination."""
    whole = open_set("type")
    judge, held_out = load_judge(whole), whole.held_out
    truths = whole.truths(whole.library.images, whole.library.marks)
    seen = ~torch.stack([fulfils(text, truths) for text in UNSEEN]).any(0)
    real = replace(whole, name="type-without", library=whole.library.take(seen.nonzero()[:, 0]))
    folder = train(real, 1.0, args.seed)
    energies: dict[str, Any] = {name: ce.load(folder / name) for name in ("base", *NAMES)}
    network = train_conditioned(real, energies["base"], folder / "conditioned", args.seed)
    parts, rows = {"real": whole.held_out, "real, same fonts": whole.library}, list[dict[str, Any]]()
    found = {name: [whole.truths(some.images, marks) for marks in (some.marks, judge.marks(some.images))] for name, some in parts.items()}
    everything = attributes(whole, held_out.images, held_out.marks)
    for text in (*NAMES, *UNSEEN):
        there = everything[fulfils(text, found["real"][0])]
        values = there[torch.arange(args.samples) % len(there)]
        shares = {name: fulfils(text, judged)[fulfils(text, known)] for name, (known, judged) in found.items()}
        for kind, words in (("energies", text), ("energies, weight 2", f"2 * ({text})")):
            images = parse(words).build(energies).sample(args.samples, seed=args.seed)
            shares[kind] = fulfils(text, whole.truths(images, judge.marks(images)))
        codes = network.given(y=values).sample(len(values), sampler="annealed", seed=args.seed, **energies["base"].recommended.options)
        images = energies["base"].decoder(codes)
        shares["conditioned network"] = fulfils(text, whole.truths(images, judge.marks(images)))
        rows.append({"expression": text, "seen": text not in UNSEEN, **{kind: float(some.float().mean()) for kind, some in shares.items()}})
        print(rows[-1], flush=True)
        yield {**environment(seed=args.seed, samples=args.samples), "rows": rows}


if __name__ == "__main__":
    run_benchmark(__doc__, RESULTS / "unseen.json", run, seed=0, samples=300)

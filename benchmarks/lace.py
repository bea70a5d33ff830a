"""Generators controlled in their latent space, beside the tests of LACE: `python -m benchmarks.lace --write`.

Sections, each of which can be run alone (`--only closed faces edits`):

- closed: a Gaussian prior and a logistic attribute in 1 to 32 dimensions, moments against quadrature;
- faces: expressions over the generator of drawn faces, 1,000 pictures each, seen by a judge that is not used in sampling;
- edits: four edits one after another.

One thread. Attributes of faces are fitted by the labels of the judge on 40,000 pictures, half of them in two rounds.
Latent points of seeds 1 to 17 are those of the training of the generator, and are not used.
"""

import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.faces import seen
from benchmarks.harness import RESULTS, environment, read_json, run_benchmark
from benchmarks.real.judges import fulfils
from composable_energy.sampling import Sampler
from composable_energy_cli.parsing import parse
from composable_energy_faces.draw import ATTRIBUTES, HAIR_COLORS, draw
from composable_energy_faces.judge import Verdict, features, frechet_distance, judge
from composable_energy_faces.mapping import GeneratedFaces
from composable_energy_latent import LACE, Attributes, Edits, attribute, edit, fit_attributes, latent
from composable_energy_mcmc import ChEES, Langevin
from plugins.latent.tests.closed_case import direction, moments

PATH = RESULTS / "lace.json"
CHAINS, PICTURES, DRAWN = 4000, 1000, 20_000
FIT: dict[str, Any] = {"count": 40_000, "rounds": 2, "seed": 0}
ROWS = ("male & ~smiling", "(male & smiling) | (~male & glasses)", "male & smiling & glasses & hat")
EDITS = ("smiling", "glasses", "hat", "old")
SAMPLERS: dict[str, tuple[Sampler, int | None]] = {
    "chees": (ChEES(), 15),
    "lace": (LACE(draws=32), None),
    "lace, draws=0": (LACE(draws=0, levels=1, tolerance=0.1), None),
    "langevin": (Langevin(step_size=0.02), 100),
}
"""The samplers of the section faces, and their steps."""


def sample(energy: ce.Energy, n: int, seed: int, sampler: Sampler, steps: int | None = None) -> tuple[Tensor, float, float]:
    """Returns latent points, evaluations of a point for each, and processor seconds."""
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ce.SamplingWarning)
        z, trace = energy.latents.sample(n, sampler=sampler, steps=steps, seed=seed, trace=True)
    scalars = trace.scalars
    evaluated = scalars["evaluations"][-1] if "evaluations" in scalars else sum(scalars.get("leapfrogs", [steps or 0]))
    return z, float(evaluated), time.process_time() - began


@torch.no_grad()
def decode(base: ce.Energy, z: Tensor) -> Tensor:
    """Returns the pictures of latent points."""
    decoder = base.decoder
    assert decoder is not None
    return torch.cat([decoder(part) for part in z.split(250)])


def attributes() -> Attributes:
    """Returns the attributes of generated faces; the labeller is the judge."""

    def labels(pictures: Tensor) -> dict[str, Tensor]:
        verdict = judge(pictures)
        return {**dict(zip(ATTRIBUTES, verdict.attributes.unbind(1), strict=True)), "hair": verdict.hair}

    return fit_attributes(GeneratedFaces().base, labels, values={"hair": HAIR_COLORS}, on="w", progress=True, **FIT)


def reference(text: str) -> Tensor:
    """Returns features of drawn faces that fulfil an expression."""
    faces = draw(PICTURES * (20 if text.count("&") > 2 else 4), seed=3)
    verdict = {name: faces.attributes[:, i] > 0.5 for i, name in enumerate(ATTRIBUTES)}
    return features(faces.images[fulfils(text, verdict)][:PICTURES])


def posterior_accuracy(E: ce.Energy, text: str, z: Tensor, verdict: Verdict) -> float:
    """Returns the accuracy of an exact sampler: draws of the prior with the probability of the expression as their weights."""
    with torch.no_grad():
        weights = (-E.evidence(z)).double().exp()
    return ((weights * fulfils(text, seen(verdict))).sum() / weights.sum()).item()


def drawn_faces(found: Attributes) -> tuple[Tensor, Verdict]:
    """Returns draws of the prior, and what the judge sees."""
    z = torch.randn(DRAWN, *(found.base.event_shape or ()), generator=torch.Generator().manual_seed(1002))
    verdicts = [judge(decode(found.base, part)) for part in z.split(1000)]
    return z, Verdict(torch.cat([v.attributes for v in verdicts]), torch.cat([v.hair for v in verdicts]))


def faces(found: Attributes) -> list[dict[str, Any]]:
    """Returns figures of each expression by each sampler, and of an exact one."""
    rows = []
    z, drawn = drawn_faces(found)
    for text in ROWS:
        E, real = parse(text).build(found), reference(text)
        rows.append({"expression": text, "sampler": "exact", "accuracy": posterior_accuracy(E, text, z, drawn)})
        print(rows[-1], flush=True)
        for name in SAMPLERS:
            points, _, seconds = sample(E, PICTURES, 0, *SAMPLERS[name])
            pictures = decode(found.base, points)
            share = fulfils(text, seen(judge(pictures))).float().mean().item()
            figures = {"accuracy": share, "seconds": seconds, "frechet": frechet_distance(features(pictures), real)}
            rows.append({"expression": text, "sampler": name, **figures})
            print(text, name, {key: round(value, 3) for key, value in figures.items()}, flush=True)
    return rows


def edits(found: Attributes, n: int = 500) -> dict[str, Any]:
    """Returns figures of four edits one after another."""
    generator = torch.Generator().manual_seed(1007)  # the weights were chosen at another seed
    z = torch.randn(n, *(found.base.event_shape or ()), generator=generator)
    session, rows, before = Edits(found.base, z), [], judge(decode(found.base, z)).attributes
    for name in EDITS:
        session = edit(session, found[name], keep=found, identity=features)
        verdict = judge(session.images)
        old = list(EDITS[: len(rows)])
        others = [i for i, other in enumerate(ATTRIBUTES) if other != name and other not in old]
        row = {"edit": name, "new": verdict[name].float().mean().item(), "distance": session.last.distance.mean().item()}
        row["earlier"] = min((verdict[other].float().mean().item() for other in old), default=1.0)
        row["untouched"] = (verdict.attributes[:, others] == before[:, others]).float().mean().item() if others else 1.0
        rows.append(row)
        print(rows[-1], flush=True)
    return {"pictures": n, "rows": rows}


def closed() -> list[dict[str, Any]]:
    """Returns errors of moments by attribute, sampler and number of dimensions."""
    rows = []
    variants: dict[str, tuple[Sampler, int | None]] = {
        "chees": (ChEES(), 15),
        "lace, draws=256": (LACE(draws=256), None),
        "lace": (LACE(), None),
        "lace, draws=16": (LACE(draws=16), None),
        "lace, draws=0": (LACE(draws=0), None),
    }
    for slope, offset in ((2.0, 0.0), (5.0, -5.0)):
        mean, variance, fourth = moments(slope, offset)
        for label, setting in variants.items():
            found = []
            for d in (1, 2, 8, 32):
                a = direction(d)
                base = latent(torch.nn.Linear(d, 1), d)
                E = attribute(base, lambda z, a=a, slope=slope, offset=offset: slope * (z @ a) + offset, "A")
                z, evaluations, seconds = sample(E, CHAINS, 0, *setting)
                along = z @ a
                of_mean = (along.mean().item() - mean) / (variance / CHAINS) ** 0.5
                of_variance = (along.var().item() - variance) / ((fourth - variance**2) / CHAINS) ** 0.5
                found.append({"d": d, "mean": of_mean, "variance": of_variance, "evaluations": evaluations, "seconds": seconds})
            rows.append({"slope": slope, "offset": offset, "sampler": label, "dimensions": found})
            print(slope, offset, label, [(f"{r['mean']:.1f}", f"{r['variance']:.1f}") for r in found], flush=True)
    return rows


def run(args: Any) -> Iterator[dict[str, Any]]:
    """Yields the sections after each, as some take long."""
    results = {**(read_json(PATH) if PATH.exists() else {}), **environment(), "pictures": PICTURES}
    if "closed" in args.only:
        results["closed"] = closed()
        yield results
    if {"faces", "edits"} & set(args.only):
        found = attributes()
        print(found.report)
        for name, measure in {"edits": edits, "faces": faces}.items():
            if name in args.only:
                results[name] = measure(found)
                yield results


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, only=("closed", "faces", "edits"))

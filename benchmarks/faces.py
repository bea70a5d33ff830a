r"""How often samples of face expressions have the requested attributes, by the library's rule and by two baselines.

    python -m benchmarks.faces [--samples 1000] [--seed 0] [--cache .cache/faces] [--skip-plain] [--skip-timing]

Prints tables and writes them, with a picture, to `benchmarks/results/`. All three rules use the same code, sampler, settings and seed:

- **library**: the expression as the library defines it, the base once and the formula's exact evidence;
- **base per concept**: each literal is a full energy, base and evidence, and `&` adds them, so the base counts once for each literal;
- **plain sums**: energies E(x | c) of one conditional network, trained on the same codes with the size and the steps of the base; they are
  added under `&`, mixed under `|`, and NOT is -0.01 E, the rule of Du, Li and Mordatch (2020). A row that consists of NOTs has no density
  by that rule; the unconditional E(x) is added to it.

The conditional network is no part of the package: the first call trains it, for half an hour of one core, and keeps it in the cache.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.faces_conditional import train_conditional
from benchmarks.harness import RESULTS, environment, read_options, write_json
from benchmarks.papers.experiment import arrange_grid, write_picture
from benchmarks.real.judges import fulfils
from composable_energy_cli.parsing import parse
from composable_energy_faces.draw import ATTRIBUTES, HAIR_COLORS, draw
from composable_energy_faces.judge import Verdict, accuracy, features, frechet_distance, judge, nearest_distances
from composable_energy_faces.networks import SIGMA_MIN
from composable_energy_faces.train import TrainingRun
from composable_energy_image import CodeEnergy
from composable_energy_image.code_energy import CodeNetwork

NAMES = (*ATTRIBUTES, *(f"hair={color}" for color in HAIR_COLORS))
ROWS = (
    *(*NAMES, "male & smiling", "male & ~smiling", "~male & glasses", "~male & ~hat"),
    *("(male & smiling) | (~male & glasses)", "male & smiling & glasses & hat", "hair=red & old & ~glasses"),
)
Rule = Callable[[str], ce.Energy]


def literals(text: str) -> dict[str, bool]:
    """Returns whether each attribute of a conjunction must hold."""
    return {name.strip(" ~()"): "~" not in name for name in text.split("&")}


def seen(verdict: Verdict) -> dict[str, Tensor]:
    """Returns whether each picture has each attribute, according to the judge."""
    return {name: verdict[name] for name in NAMES}


class Absolute(ce.Energy):
    """A relative energy without its base, so that a sum counts the base again."""

    def __init__(self, inner: ce.Energy) -> None:
        super().__init__()
        self.inner = inner
        self.decoder = inner.decoder
        self.event_shape, self.recommended, self.name = inner.event_shape, inner.recommended, str(inner)

    def forward(self, x: Tensor, sigma: Tensor | float = SIGMA_MIN) -> Tensor:
        return self.inner(x, sigma=sigma)

    def __invert__(self) -> ce.Energy:
        return Absolute(~self.inner)


class Conditional(ce.Energy):
    """E(x | c) of the conditional network; E(x) without a condition."""

    condition: Tensor

    def __init__(self, net: CodeNetwork, faces: CodeEnergy, name: str = "") -> None:
        super().__init__()
        self.net, self.decoder = net, faces.decoder
        self.event_shape, self.recommended, self.name = faces.event_shape, faces.recommended, f"E(x | {name})"
        self.register_buffer("condition", torch.tensor([[float(name == other) for other in NAMES]]))

    def forward(self, x: Tensor, sigma: Tensor | float = SIGMA_MIN) -> Tensor:
        return self.net(x, sigma=sigma, y=self.condition)

    def __invert__(self) -> ce.Energy:
        return ce.negate(self, "power", weight=0.01)


def rules(cache: Path | None) -> dict[str, Rule]:
    """Returns the rules by name; the plain sums only if there is a cache for their network."""
    ours = {name: ce.get("energy", f"faces/{name}") for name in NAMES}
    absolute = {name: Absolute(energy) for name, energy in ours.items()}
    found: dict[str, Rule] = {"library": lambda text: parse(text).build(ours), "base per concept": lambda text: parse(text).build(absolute)}
    if cache is not None:
        net = train_conditional(TrainingRun(cache))
        faces = ce.get("energy", "faces")
        plain = {name: Conditional(net, faces, name) for name in NAMES}  # pyright: ignore[reportArgumentType]
        ground = Conditional(net, faces)  # pyright: ignore[reportArgumentType]

        def plain_sums(text: str) -> ce.Energy:
            energy = parse(text).build(plain)
            return energy if energy.grounded else energy & ground

        found["plain sums"] = plain_sums
    return found


def compare(text: str, found: dict[str, Rule], samples: int, seed: int) -> tuple[dict[str, Any], Tensor]:
    """Returns a row's scores under every rule with the diversity of the library's samples, and the library's pictures."""
    scores: dict[str, Any] = {}
    pictures = torch.empty(0)
    for name, rule in found.items():
        try:
            started = time.perf_counter()
            images = rule(text).sample(samples, seed=seed)
            seconds = time.perf_counter() - started
            verdict = seen(judge(images))
            joint, *branches = (fulfils(some, verdict).double().mean().item() for some in (text, *text.split(" | ")))
            free = {other: verdict[other].double().mean().item() for other in ATTRIBUTES if other not in text}
            scores[name] = {"joint": joint, "branches": branches, "free": free, "seconds": seconds}
        except ce.errors.SamplingDiverged as error:
            scores[name], images = {"joint": float("nan"), "error": str(error).partition(".")[0]}, torch.empty(0)
        if name == "library":
            pictures = images
    sets = drawn_like(text, 4 * samples).split(samples)
    coded = [decoded(part) for part in sets]
    scores["diversity"] = {
        "frechet": frechet_distance(features(pictures), features(sets[0])),
        "frechet of drawn sets": frechet_distance(features(sets[1]), features(sets[0])),
        "frechet of decoded sets": frechet_distance(features(coded[1]), features(sets[0])),
        "nearest": spread([pictures]),
        "nearest of drawn sets": spread(sets),
        "nearest of decoded sets": spread(coded),
    }
    return scores, pictures


def drawn_like(text: str, count: int, seed: int = 4) -> Tensor:
    """Returns drawn faces with the attributes of a row; its alternatives take turns."""
    branches = text.split("|")
    share, parts = -(-count // len(branches)), []
    for index, branch in enumerate(branches):
        given = dict(("hair", HAIR_COLORS.index(name[5:])) if "=" in name else (name, wanted) for name, wanted in literals(branch).items())
        parts.append(draw(share, seed=seed, start=index * share, given=given).images)
    return torch.stack(parts, 1).flatten(0, 1)[:count]


def spread(sets: Sequence[Tensor]) -> dict[str, float]:
    """Returns the smallest and the mean distance of a picture to the nearest other one of its set."""
    distances = torch.stack([nearest_distances(part) for part in sets])
    return {"smallest": float(distances.min()), "mean": float(distances.mean())}


@torch.no_grad()
def decoded(images: Tensor) -> Tensor:
    coder = ce.get("energy", "faces").decoder
    return torch.cat([coder(coder.encode(part)) for part in images.split(250)])  # pyright: ignore


def classifier_accuracy(count: int = 2000) -> dict[str, dict[str, float]]:
    """Returns the accuracy of the classifier on drawn faces, and on decoded ones."""
    faces = draw(count, seed=3)
    return {name: accuracy(judge(images), faces) for name, images in (("drawn", faces.images), ("decoded", decoded(faces.images)))}


def timings(energy: ce.Energy) -> list[dict[str, Any]]:
    """Returns the seconds of 16 and 1,000 samples, on an idle machine and beside programs that use every core, on one thread and two."""
    found = []
    for busy in (0, os.cpu_count() or 1):
        others = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(busy)]
        for other in others:
            other.start()
        try:
            for threads, samples in ((1, 16), (1, 1000), (2, 16)):
                energy.recommended = ce.Recommendation(**{**vars(energy.recommended), "threads": threads})
                started = time.perf_counter()
                energy.sample(samples, seed=1)
                found.append({"busy": busy, "threads": threads, "samples": samples, "seconds": time.perf_counter() - started})
        finally:
            for other in others:
                other.terminate()
    return found


def _spin() -> None:
    while True:
        pass


def compare_rows(found: dict[str, Rule], samples: int, seed: int) -> tuple[dict[str, Any], Tensor]:
    """Prints a line for each row and returns the scores of all, and a picture of some."""
    rows, sheets = {}, []
    for text in ROWS:
        scores, images = compare(text, found, samples, seed)
        rows[text] = scores
        if "&" in text:
            sheets.append(images[:16])
        shares = "".join(f"{name} {scores[name]['joint']:.3f}, " for name in found)
        print(f"{text:<38}{shares}{scores['diversity']}", flush=True)
    return rows, arrange_grid(torch.cat(sheets))


def main() -> None:
    args = read_options(__doc__, samples=1000, seed=0, cache=Path(".cache/faces"), skip_plain=False, skip_timing=False)
    found = rules(None if args.skip_plain else args.cache)
    report: dict[str, Any] = {**environment(), "samples": args.samples, "seed": args.seed, "classifier": classifier_accuracy()}
    print(report["classifier"])
    report["rows"], images = compare_rows(found, args.samples, args.seed)
    if not args.skip_timing:
        report["timings"] = timings(ce.get("energy", "faces/male") & ~ce.get("energy", "faces/smiling"))
        print(*report["timings"], sep="\n")
    name = "faces" if args.seed == 0 else f"faces-seed-{args.seed}"
    write_json(RESULTS / f"{name}.json", report)
    write_picture(RESULTS / f"{name}.png", images)


if __name__ == "__main__":
    main()

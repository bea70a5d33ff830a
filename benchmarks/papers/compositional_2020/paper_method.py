r"""Table 1 by the paper's method: energies of pixels by contrastive divergence, `&` as their sum, NOT as $-\alpha E$, OR by logsumexp.

    python -m benchmarks.papers.compositional_2020.paper_method [--write]
    python -m benchmarks.papers.compositional_2020.paper_method --train FOLDER     (trains the energies first, or continues a training)

After the table, it tests what NOT and OR of such energies need: $\alpha$ from .001 to 1, a bounded complement, and the complement of the
classifier that the energies define; and the scale of the energies under the logsumexp, which is 100 in a line of the released code whose
result the next line discards.

Each energy is conditional, $E(x \mid y)$, and has a training set of its own with all other attributes at random. So that everything runs
on one core, pictures have 32 pixels (the paper: 64), networks a width of 16 (64), chains 8 steps for each of training (60), and trainings
1,250 to 2,250 steps (some 24,000) on 16,000 pictures of each concept (200,000 in all).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.compositional_2020.claims import Options, near, render, share
from benchmarks.papers.compositional_2020.table1 import ROWS, conditions
from benchmarks.papers.experiment import COMPOSITIONAL
from composable_energy_faces.judge import frechet_distance
from composable_energy_image.data import render_to
from composable_energy_image.network_training import CostLog
from composable_energy_scenes import COLORS, KINDS, OneObject, weights
from composable_energy_scenes.weights import FOLDER
from composable_energy_training import Checkpoints, ContrastiveDivergence, Optimizer, ProgressBar, Trainer

WEIGHTS = Path(__file__).parent / "weights"
CONCEPTS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {"position": {"numbers": 2}, "color": {"labels": len(COLORS)}, "shape": {"labels": len(KINDS)}, "size": {"numbers": 1}}
)
"""The condition of each network, in the order of their training sets."""

SIZE = 32
STEP, NOISE = 500.0, 0.005
"""A step of a chain is $x' = \\text{clamp}(x - \\text{STEP}\\, \\nabla E(x) + \\text{NOISE}\\, \\xi)$."""

EACH, SEED = 16_000, 1
K, BATCH, BUFFER, RATE, EMA = 8, 16, 256, 1e-3, 0.99
STEPS: Mapping[str, int] = MappingProxyType({"position": 2250, "color": 1750, "shape": 2000, "size": 1250})


def network(concept: str) -> ce.Energy:
    """Returns the untrained network of a concept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ce.get("energy", "igebm-dsprites", size=SIZE, channels=3, width=16, activation="swish", **CONCEPTS[concept])


def load(folder: Path = WEIGHTS) -> dict[str, ce.Energy]:
    """Returns the trained energies by concept."""
    return {concept: weights.read(network(concept), f"paper-{concept}", folder) for concept in CONCEPTS}


def condition_of(concept: str, values: Tensor) -> Tensor:
    """Returns labels of the world as conditions of the networks: sizes in [-1, 1], the others unchanged."""
    return (values - 0.5) / 0.2 if concept == "size" else values


def reduce(images: Tensor) -> Tensor:
    """Returns pictures of 64 pixels at the size of the energies, averaged over squares of four pixels."""
    return F.avg_pool2d(images, 2)


def enlarge(images: Tensor) -> Tensor:
    """Returns pictures of the energies at the size that the evaluator takes."""
    return F.interpolate(images, size=64, mode="bilinear", align_corners=False)


def train(folder: Path, steps: Mapping[str, int] = STEPS, *, to: Path = WEIGHTS, progress: bool = True) -> None:
    """Trains the energies and writes their weights; each has a folder of its own with checkpoints."""
    scenes = render_to(folder / "scenes", OneObject(), EACH * len(CONCEPTS), SEED, progress=progress)
    for concept, count in steps.items():
        energy, first = network(concept), EACH * list(CONCEPTS).index(concept)
        rows = slice(first, first + EACH)
        images = torch.cat([reduce(torch.from_numpy(part).float() / 255) for part in np.array_split(np.array(scenes.images[rows]), 16)])
        values = condition_of(concept, torch.from_numpy(np.array(scenes.labels[concept][rows])))
        chains = {"step_size": 2 * STEP, "temperature": NOISE**2 / (2 * STEP), "clamp": (0.0, 1.0)}
        Trainer(
            energy,
            ContrastiveDivergence(steps=K, options=chains, buffer=BUFFER, fresh=0.05, l2=1.0, condition=concept),
            (images, {concept: values}),
            steps=count,
            batch_size=BATCH,
            optimizer=Optimizer(rate=RATE, betas=(0.0, 0.999), warm_up=50, clip="adam", ema=EMA, precision="bfloat16"),
            callbacks=[Checkpoints(folder / concept, every=250, keep=1), CostLog(), *[ProgressBar()] * progress],
        ).fit()
        weights.write(energy, f"paper-{concept}", to)


CHAIN = 40
"""Steps of a chain that draws a picture; chosen on another seed, like the settings below."""

ALPHA, ALPHAS = 0.001, (0.001, 0.01, 0.1, 0.3, 1.0)
"""The factors of NOT: in the table, as in the released code, and in the test."""

SCALE, SCALES = 100.0, (1.0, 1e2, 1e4)
"""The factors of energies under OR: in the table, as in the released code, and in the test."""

MARGIN = 8.0
"""Units of evidence that a bounded complement has between pictures of a concept and others."""


def paper_not(energy: Any, alpha: float) -> ce.Energy:
    r"""Returns the paper's NOT, $-\alpha E$, which has no lower bound."""
    return ce.negate(energy, mode="power", weight=alpha)


def paper_or(*energies: Any, scale: float) -> ce.Energy:
    r"""Returns the paper's OR, $-\log \sum_k e^{-s E_k} / s$ with a scale $s$."""
    return ce.Disjunction(*(scale * energy for energy in energies)) / scale


def bounded_not(energy: Any, at: float, scale: float) -> ce.Energy:
    r"""Returns a bounded NOT, $\operatorname{softplus}(s (b - E)) / s$: it acts on a picture only until its energy is above $b$."""
    return ce.negate(scale * energy, mode="contrast", offset=scale * at) / scale


def energy_classifier(of: Callable[[Tensor], ce.Energy], classes: int, scale: float) -> ce.ClassifierEnergy:
    r"""Returns the classifier of conditional energies, $p(k \mid x) \propto e^{-s E(x \mid k)}$; `~` of its events is exact."""
    energies = [of(torch.tensor([k])) for k in range(classes)]
    return ce.ClassifierEnergy(lambda x: -scale * torch.stack([energy(x) for energy in energies], 1), labels=classes)


@dataclass(frozen=True)
class Method:
    """Conditional energies with a sampler."""

    of: Mapping[str, Callable[[Tensor], ce.Energy]]
    draw: Callable[[ce.Energy, int, int], Tensor]  # function from an energy, a number of pictures and a seed to pictures of 64 pixels
    alpha: float  # factor of NOT
    scale: float  # factor of energies under OR


def of_pixels(chain: int, alpha: float, scale: float) -> Method:
    """Returns the paper's method: energies of pixels, and chains of a number of steps from uniform noise, in bfloat16 as in training."""
    energies = load()
    options = {"step_size": 2 * STEP, "temperature": NOISE**2 / (2 * STEP), "clamp": (0.0, 1.0)}

    def draw(energy: ce.Energy, n: int, seed: int) -> Tensor:
        start = torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        settings = {"steps": chain, "init": start, "seed": seed, "batch_size": 125, "allow_improper": True, **options}
        with torch.autocast("cpu", torch.bfloat16):
            return enlarge(energy.sample(n, sampler="langevin", **settings))

    def bind(concept: str) -> Callable[[Tensor], ce.Energy]:
        return lambda values: energies[concept].given(y=condition_of(concept, values))

    return Method({concept: bind(concept) for concept in energies}, draw, alpha, scale)


def expressions(method: Method, c: Mapping[str, Tensor]) -> dict[str, ce.Energy]:
    """Returns the rows of `table1` by the paper's rules."""

    def term(name: str) -> ce.Energy:
        positive = name.removeprefix("not ")
        energy = method.of[positive.rstrip("12")](c[positive])
        return energy if name == positive else paper_not(energy, method.alpha)

    rows = {row.text: [ce.all_of(*map(term, branch)) for branch in row.branches] for row in ROWS}
    return {text: branches[0] if len(branches) == 1 else paper_or(*branches, scale=method.scale) for text, branches in rows.items()}


def run(options: Options) -> dict[str, Any]:
    pixels = of_pixels(CHAIN, ALPHA, SCALE)
    lowered = enlarge(reduce(render(max(2000, options.samples), 12)[0]))
    table = _rows(pixels, options)
    some = replace(options, samples=max(2, options.samples // 4), seed=options.seed + 1)
    nots, ors = _nots(pixels, some, lowered), _ors(pixels, some)
    return {"table": table, "not": nots, "or": ors}


def _rows(method: Method, options: Options) -> list[dict[str, Any]]:
    """Draws and evaluates the rows of the table."""
    c, known, rows = conditions(options.samples, options.seed), {row.text: row for row in ROWS}, []
    for text, energy in expressions(method, c).items():
        images = method.draw(energy, options.samples, options.seed)
        rows.append({"row": text, "scores": known[text].scores(options.evaluate(images), c)})
    return rows


def _nots(method: Method, options: Options, real: Tensor) -> list[dict[str, Any]]:
    """Returns rows of `position & ~color` by several factors, by a bounded NOT, and by the classifier of the energies."""
    c, features = conditions(options.samples, options.seed), options.evaluator.features(real)
    place, color = (method.of[concept](c[concept]) for concept in ("position", "color"))
    tint, scale = _bounds("color")
    event = energy_classifier(method.of["color"], len(COLORS), scale)
    kinds = {f"{alpha:g} E": paper_not(color, alpha) for alpha in ALPHAS}
    kinds |= {"bounded": bounded_not(color, tint, scale), "classifier": ~event.given(y=c["color"]) / scale}
    rows = []
    for name, negated in kinds.items():
        images = method.draw(place & negated, options.samples, options.seed)
        found = options.evaluate(images)
        right = {"position": share(near(found.position, c["position"])), "& ~color": share(found.color != c["color"])}
        far = frechet_distance(options.evaluator.features(images), features)
        rows.append({"NOT": name, **right, "Frechet of position & ~color": far})
    return rows


def _bounds(concept: str) -> tuple[float, float]:
    """Returns the mean of the energies for true and for wrong values of a concept, and a scale for their difference."""
    images, truth = render(1000, 21)
    values = condition_of(concept, truth[concept])
    with torch.no_grad():
        own, other = (float(load()[concept](reduce(images), y=value).mean()) for value in (values, values.roll(1, 0)))
    return (own + other) / 2, MARGIN / max(other - own, 1e-9)


def _ors(method: Method, options: Options) -> list[dict[str, Any]]:
    """Returns rows of the OR of two positions at several scales."""
    c, rows = conditions(options.samples, options.seed), []
    spots = [c[name] for name in ("position1", "position2")]
    branches = [method.of["position"](spot) for spot in spots]
    for scale in SCALES:
        images = method.draw(paper_or(*branches, scale=scale), options.samples, options.seed)
        position = options.evaluate(images).position
        first, second = (near(position, spot) for spot in spots)
        rows.append({"scale": f"{scale:g}", "either": share(first | second), "first": share(first), "second": share(second)})
    return rows


def experiment(args: Any) -> Iterator[dict[str, Any]]:
    """Trains the energies, if asked, and yields the figures."""
    if args.train != Path():
        train(args.train)
    yield run(Options(args.samples, args.seed, args.weights))


if __name__ == "__main__":
    COMPOSITIONAL.run("paper_method", __doc__, experiment, samples=1000, seed=11, weights=FOLDER, train=Path())

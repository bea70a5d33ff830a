r"""Expressions over a pipeline of diffusers, by this library and as published: `python -m benchmarks.diffusers --write`.

The pipeline is that of drawn faces at 32 pixels, a `UNet2DModel` with a class for each attribute, for its absence, and for any face
(`python -m composable_energy_small_faces.train`). Each cell is the share of 500 samples that satisfy the expression, according to a
judge of small faces: the network of the faces' judge, trained again on faces of its own seed at 32 pixels with a little noise; pictures are
doubled in size for it. All rules of the pipeline get the same network, in channels last, and all but the third the same weight of evidence.

- **classes**: `~smiling` is the class "not smiling"; `sde`.
- **negation**: `~smiling` is the negative of the evidence of "smiling", `ce.negate(..., mode="power", weight=1.0)`; `sde`.
- **bounded**: `~smiling` is the negation by contrast, drawn by `feynman-kac`, which needs no values.
- **published**: $\epsilon + \sum_i w_i (\epsilon_i - \epsilon)$ with negative weights for NOT (Liu et al., 2022); DDIM of diffusers.
- **our faces**: the same expressions over `faces/...`, pictures of 64 pixels reduced to 32, with their recommended sampler.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.faces import literals, seen
from benchmarks.harness import RESULTS, environment, replace_rows, run_benchmark
from benchmarks.real.judges import fulfils
from composable_energy_cli.parsing import parse
from composable_energy_faces import draw
from composable_energy_faces.judge import features, frechet_distance
from composable_energy_small_faces import ANY_FACE, PIPELINE, class_of, judge_small, load_small_judge, shrink

PATH = RESULTS / "diffusers.json"
LEVELS, WEIGHT, SEED = 20, 3.0, 0
CHUNK = 20  # pictures that are evaluated together, with all concepts: larger batches do not fit into the cache

ROWS = ("male & ~smiling", "male & smiling", "~male & glasses", "male & ~smiling & glasses & hat")
Drawn = tuple[Tensor, float]  # pictures in [0, 1], and the evaluations of the network, or of the energy, for each


def pipeline() -> Any:
    """Returns the pipeline of small faces as an energy."""
    faces: Any = ce.load(f"diffusers:{PIPELINE}", unconditional=ANY_FACE)
    return faces.to(memory_format=torch.channels_last)


def by_classes(row: str, count: int) -> Drawn:
    faces = pipeline()
    terms = [faces.concept(class_label=class_of(name, wanted)) for name, wanted in literals(row).items()]
    return by_levels(ce.all_of(*terms).sharpened(WEIGHT), count)


def signed(row: str, negate: Callable[[ce.Energy], ce.Energy]) -> ce.Energy:
    """Returns the conjunction of a row, with a negation for what it denies."""
    faces = pipeline()
    terms = [(faces.concept(class_label=class_of(name)), wanted) for name, wanted in literals(row).items()]
    return ce.all_of(*(term if wanted else negate(term) for term, wanted in terms))


def by_negation(row: str, count: int) -> Drawn:
    return by_levels(signed(row, lambda term: ce.negate(term, mode="power", weight=1.0)).sharpened(WEIGHT), count)


def by_levels(energy: ce.Energy, count: int) -> Drawn:
    images, trace = energy.sample(count, sampler="sde", levels=LEVELS, seed=SEED, batch_size=CHUNK, trace=True)
    return images, trace.scalars["evaluations"][-1]


def bounded(row: str, count: int) -> Drawn:
    options = {"levels": LEVELS, "sigma_max": 50.0, "sigma_min": 0.03, "spread": 0.5}
    energy = signed(row, lambda term: ~term)
    return energy.sample(count, sampler="feynman-kac", seed=SEED, batch_size=CHUNK, **options), 2.0 * LEVELS


@torch.no_grad()
def published(row: str, count: int) -> Drawn:
    """Adds predictions of the network, in chunks, as the published code does."""
    from diffusers import DDIMScheduler, DDPMPipeline

    own = DDPMPipeline.from_pretrained(PIPELINE, low_cpu_mem_usage=False)
    scheduler, unet = DDIMScheduler.from_config(own.scheduler.config), own.unet.to(memory_format=torch.channels_last)
    weights = torch.tensor([WEIGHT if wanted else -WEIGHT for wanted in literals(row).values()])[:, None, None, None, None]
    labels = torch.tensor([ANY_FACE, *(class_of(name) for name in literals(row))])
    generator, parts = torch.Generator().manual_seed(SEED), []
    for start in range(0, count, CHUNK):
        n = min(CHUNK, count - start)
        x = torch.randn(n, 3, 32, 32, generator=generator)
        scheduler.set_timesteps(LEVELS)
        for t in scheduler.timesteps:
            classes = labels.repeat_interleave(n)
            base, *terms = unet(x.repeat(len(labels), 1, 1, 1), t, class_labels=classes).sample.chunk(len(labels))
            x = scheduler.step(base + (weights * (torch.stack(terms) - base)).sum(0), t, x).prev_sample
        parts.append((x / 2 + 0.5).clamp(0, 1))
    return torch.cat(parts), float(LEVELS)


def our_faces(row: str, count: int) -> Drawn:
    energy = parse(row).build({name: ce.load(f"faces/{name}") for name in literals(row)})
    options: Any = energy.recommended.options if energy.recommended else {}
    return shrink(energy.sample(count, seed=SEED)), float(options["levels"] * (options["corrector_steps"] + 1))


RULES = {"classes": by_classes, "negation": by_negation, "bounded": bounded, "published": published, "our faces": our_faces}


def measure(rule: str, row: str, count: int) -> dict[str, Any]:
    """Returns the scores of a rule on a row."""
    started = time.process_time()
    images, evaluations = RULES[rule](row, count)
    found = {"rule": rule, "row": row, "evaluations": evaluations, "seconds": round(time.process_time() - started, 1)}
    return found | {"joint": float(fulfils(row, seen(judge_small(images))).float().mean()), "frechet": round(distance(images, row), 2)}


def distance(images: Tensor, row: str) -> float:
    """Returns the Frechet distance to drawn faces with the attributes of a row, in the features of the judge."""
    network, doubled = load_small_judge(), torch.nn.functional.interpolate
    drawn = shrink(draw(len(images), seed=4, given=literals(row)).images)
    return frechet_distance(*(features(doubled(some, scale_factor=2), network) for some in (images, drawn)))


def run(args: Any) -> Iterator[dict[str, Any]]:
    about = environment("diffusers", samples=args.samples, levels=LEVELS, weight=WEIGHT, seed=SEED)
    for rule, row in itertools.product(args.rules, (ROWS[index] for index in args.rows)):
        if rule in ("negation", "bounded") and all(literals(row).values()):
            continue  # the same as by classes
        found = measure(rule, row, args.samples)
        print(found, flush=True)
        yield {**about, "rows": replace_rows(PATH, [found], ("rule", "row"))}


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, samples=500, rules=list(RULES), rows=range(len(ROWS)))

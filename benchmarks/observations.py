"""Posteriors of measured faces: coverage, PSNR beside baselines, and composition: `python -m benchmarks.observations --write`.

The truths are draws of the model itself, so that intervals of the exact posterior cover them at their nominal rate: the test is calibrated.
For each operator and truth, 19 chains come down from the highest noise level by `annealed`, and take 20 steps of `chees`, which is exact;
its options are tuned at the first truth of an operator. The interval from the lowest to the highest of 19 independent draws covers a new
one in 90 % of cases.

Baselines: DPS, diffusion posterior sampling (Chung et al., 2023) in the latent space, whose one option is chosen on two other truths; and
the least-squares projection on the range of the decoder.
"""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import RESULTS, environment, run_benchmark
from composable_energy_faces import judge
from composable_energy_observed import Blur, Downsample, Mask, Operator

PATH = RESULTS / "observations.json"
PICTURES = RESULTS / "observations.safetensors"
SIZE, NOISE, DRAWS, STEPS, PILOTS, COMPOSED = 64, 0.05, 19, 20, 64, 50
LEVELS = {"levels": 100, "sigma_min": 0.02}  # chosen on two truths of seed 1, `truths` has others
SHAPE = (3, SIZE, SIZE)
SCALES = (0.3, 0.6, 1.0, 1.7, 3.0, 10.0)  # of DPS


def operators() -> dict[str, Operator]:
    """Returns the four instruments: the upper half, 16 x 16 pixels, a blur, and 10 % of the pixels."""
    half = torch.zeros(SHAPE, dtype=torch.bool)
    half[:, : SIZE // 2] = True
    some = torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) < 0.1
    return {"16 x 16": Downsample(4), "10 %": Mask(some.expand(SHAPE)), "blur": Blur(3.0), "half": Mask(half)}


def truths(base: ce.Energy, count: int) -> Tensor:
    """Returns exact draws of the model, as latent points: those of the annealed sampler, moved on by one that accepts and rejects."""
    start = base.latents.sample(max(count, 64), seed=11)
    moved: Tensor = base.latents.sample(max(count, 64), init=start, sampler="chees", seed=12, steps=50)
    return moved[:count]


def measure(base: ce.Energy, operator: Operator, z: Tensor, index: int, noise: float = NOISE) -> tuple[Tensor, Tensor, ce.Energy]:
    """Returns the picture of a truth, what was measured, and its evidence."""
    truth = decode(base, z[index : index + 1])
    generator = torch.Generator().manual_seed(100 + index)
    clean = operator(truth)
    y = (clean + noise * torch.randn(clean.shape, generator=generator))[0]
    return truth[0], y, ce.observed(y, operator, noise)


@torch.no_grad()
def decode(base: ce.Energy, z: Tensor) -> Tensor:
    decoder: Any = base.decoder
    return decoder(z)


def psnr(picture: Tensor, truth: Tensor) -> float:
    return float(-10 * (picture - truth).square().mean().log10())


def dps(base: ce.Energy, operator: Operator, y: Tensor, scale: float, count: int = 4, levels: int = 100) -> Tensor:
    """Returns draws of DPS: ancestral steps down the noise levels, and after each a step against the gradient of the residual norm."""
    decoder: Any = base.decoder
    sigmas = torch.logspace(torch.tensor(4.0).log10(), torch.tensor(0.05).log10(), levels)
    generator = torch.Generator().manual_seed(7)
    z = (sigmas[0] ** 2 + 1).sqrt() * torch.randn(count, 64, generator=generator)
    for sigma, below in zip(sigmas, [*sigmas[1:], torch.tensor(0.0)], strict=True):
        z = z.detach().requires_grad_()
        clean = z + sigma**2 * base.score(z, create_graph=True, sigma=sigma.item())
        residual = (operator(decoder(clean)) - y).flatten(1).norm(dim=1).sum()
        (slope,) = torch.autograd.grad(residual, z)
        share = (below / sigma) ** 2
        mean = share * z.detach() + (1 - share) * clean.detach()
        z = mean + (1 - share).sqrt() * below * torch.randn(z.shape, generator=generator) - scale * slope
    return decode(base, z.detach())


def project(base: ce.Energy, operator: Operator, y: Tensor, steps: int = 300) -> Tensor:
    """Returns the picture of the decoder that fits the measurement best, without a prior."""
    decoder: Any = base.decoder
    z = torch.zeros(1, 64, requires_grad=True)
    optimizer = torch.optim.Adam([z], 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        (operator(decoder(z)) - y).square().sum().backward()
        optimizer.step()
    return decode(base, z.detach())[0]


class Posterior:
    """Draws of a posterior: from the highest noise level down by `annealed`, and from there by `chees`, tuned at the first truth."""

    def __init__(self, base: ce.Energy) -> None:
        self.annealed: dict[str, Any] = {**(base.recommended.options if base.recommended else {}), **LEVELS}
        self.tuned: dict[str, Any] = {}

    def draw(self, energy: ce.Energy, kind: str, seed: int) -> tuple[Tensor, Tensor, float]:
        """Returns the draws before and after `chees`, and the processor time without tuning."""
        if kind not in self.tuned:
            init = energy.latents.sample(PILOTS, seed=seed + 1000, sampler="annealed", **self.annealed)
            _, trace = energy.latents.sample(PILOTS, seed=seed, init=init, sampler="chees", tuning_steps=128, steps=1, trace=True)
            self.tuned[kind] = trace.sampler
        begin = time.process_time()
        start = energy.latents.sample(DRAWS, seed=seed, sampler="annealed", **self.annealed)
        draws = energy.latents.sample(DRAWS, seed=seed, init=start, sampler=self.tuned[kind], steps=STEPS)
        return start, draws, time.process_time() - begin


def solve(
    base: ce.Energy, name: str, operator: Operator, z: Tensor, index: int, scale: float, sampler: Posterior
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the figures of one problem, and pictures."""
    truth, y, seen = measure(base, operator, z, index)
    start, draws, seconds = sampler.draw(base & seen, name, index)
    pictures, first = decode(base, draws), decode(base, start)
    guided, projected = dps(base, operator, y, scale), project(base, operator, y)

    def misfit(found: Tensor) -> float:
        return (operator(found) - y).square().mean().sqrt().item() / NOISE

    row = {
        "operator": name,
        "truth": index,
        "coverage": _coverage(pictures, truth),
        "coverage before": _coverage(first, truth),
        "psnr of the mean": psnr(pictures.mean(0), truth),
        "psnr of a draw": sum(psnr(picture, truth) for picture in pictures) / DRAWS,
        "psnr of dps": sum(psnr(picture, truth) for picture in guided) / len(guided),
        "psnr of projection": psnr(projected, truth),
        "misfit": misfit(pictures),
        "seconds": seconds,
    }
    shown = {"truth": truth, "y": _shown(operator, y), "mean": pictures.mean(0), "spread": (4 * pictures.std(0)).clamp(max=1)}
    shown |= {"dps": guided[0], "projection": projected, **{f"draw {i}": pictures[i] for i in range(3)}}
    return row, {f"{name}/{key}": value for key, value in shown.items()}


def _coverage(draws: Tensor, truth: Tensor) -> float:
    """Returns the share of numbers between the lowest and the highest draw, of those that differ between draws."""
    low, high = draws.amin(0), draws.amax(0)
    return ((low <= truth) & (truth <= high))[high > low].float().mean().item()


def choose_scale(base: ce.Energy, operator: Operator, z: Tensor) -> float:
    """Returns the scale of DPS with the highest PSNR on two truths."""
    problems = [measure(base, operator, z, index) for index in range(2)]

    def score(scale: float) -> float:
        return sum(psnr(picture, truth) for truth, y, _ in problems for picture in dps(base, operator, y, scale).nan_to_num())

    return max(SCALES, key=score)


def compose(base: ce.Energy, z: Tensor, index: int) -> list[dict[str, Any]]:
    """Returns the judge's verdicts on draws of `annealed` with an attribute that the measurement hardly shows, and without it."""
    smiling, rows = ce.load("faces/smiling"), []
    options = Posterior(base).annealed
    for name, operator, noise in (("half", operators()["half"], NOISE), ("8 x 8", Downsample(8), 2 * NOISE)):
        _, _, seen = measure(base, operator, z, index, noise)
        for wanted, energy in ((True, smiling & seen), (False, ~smiling & seen), (None, base & seen)):
            verdict = judge(energy.sample(COMPOSED, seed=index, sampler="annealed", **options))
            rows.append({"truth": index, "operator": name, "smiling": wanted, "share": verdict["smiling"].float().mean().item()})
            print(rows[-1], flush=True)
    return rows


def _shown(operator: Operator, y: Tensor) -> Tensor:
    """Returns a measurement as a picture."""
    if not isinstance(operator, Mask):
        return torch.nn.functional.interpolate(y[None], SIZE)[0].clamp(0, 1)
    picture = torch.full(SHAPE, 0.5)
    picture[operator.mask] = y.clamp(0, 1)
    return picture


def run(args: Any) -> Iterator[dict[str, Any]]:
    """Yields the figures after each problem, and writes the pictures of the first truth."""
    base, used = ce.load("faces"), operators()
    results: dict[str, Any] = {"rows": [], "composed": [], "scales": {}}
    results |= environment(truths=args.truths, noise=NOISE, draws=DRAWS, steps=STEPS)
    shown: dict[str, Tensor] = {}
    z, sampler = truths(base, args.truths + 2), Posterior(base)
    for index, name in itertools.product(range(args.truths), used):
        if name not in results["scales"]:
            results["scales"][name] = choose_scale(base, used[name], z[args.truths :])
        row, pictures = solve(base, name, used[name], z, index, results["scales"][name], sampler)
        results["rows"].append(row)
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
        if index == 0:
            shown |= {key: (value.clamp(0, 1) * 255).round().to(torch.uint8).contiguous() for key, value in pictures.items()}
        if args.write:
            save_file(shown, PICTURES)
        yield results
    for index in range(args.composed):
        results["composed"] += compose(base, z, index)
        yield results


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, truths=12, composed=4)

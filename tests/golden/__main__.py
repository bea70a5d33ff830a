"""Expressions of every kind, and their short runs by each sampler that draws them. Chains are few and short, so a difference of rounding
stays one. Energies are evaluated in float64 where the expression allows it. `python -m tests.golden` records the draws, after a change that
is meant to change them; compare the old file in distribution before."""

import hashlib
import json
import platform
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.distributions import Gamma, Normal, VonMises

import composable_energy as ce
from benchmarks.score_expressions import expressions
from composable_energy import SamplingWarning
from tests.factories import DTYPE, LEAVES, Noisy
from tests.third_party import AnyTiles

FILE = Path(__file__).parent / "draws.safetensors"
CHAINS, STEPS, SEED, POINTS = 8, 4, 3, 4
EXACT = ("langevin", "underdamped", "mala", "hmc", "chees", "tempering", "smc")


def _noised() -> ce.Energy:
    noisy = Noisy()
    noisy.event_shape = torch.Size([2])
    return noisy


CASES: dict[str, Callable[[], ce.Energy]] = {
    "conjunction": lambda: LEAVES["distribution"] & LEAVES["network"],
    "negation": lambda: LEAVES["distribution"] & ~LEAVES["ring"],
    "mixture": lambda: ce.any_of(LEAVES["independent"], LEAVES["distribution"], weights=[0.3, 0.7]),
    "nested": lambda: ce.any_of(LEAVES["independent"] & LEAVES["ring"], LEAVES["network"], weights=[1, 2]),
    "shared base": lambda: LEAVES["relative"] & 1.5 * LEAVES["tilt"],
    "events": lambda: (LEAVES["red"] | LEAVES["event"]) & ~LEAVES["near"],
    "scores": lambda: expressions(values=False)["A & ~B"],
    "half-line": lambda: ce.as_energy(Gamma(torch.full((2,), 2.0, dtype=DTYPE), 1.0)) & LEAVES["network"],
    "circle": lambda: ce.as_energy(VonMises(torch.tensor([1.0, -2.0], dtype=DTYPE), 3.0)),
    "noised": lambda: _noised() & LEAVES["network"],
    "latents": lambda: AnyTiles() & ce.as_energy(Normal(torch.zeros(4), 2.0)),
    "faces": lambda: ce.load("faces/male") & ~ce.load("faces/smiling"),
}
OTHERS = {"noised": ("annealed",), "scores": ("feynman-kac",), "latents": ("langevin", "hmc"), "faces": ("langevin", "mala")}
SAMPLERS = {name: OTHERS.get(name, EXACT) for name in CASES}


def draw(case: str, sampler: str) -> Tensor:
    """Returns the draws."""
    energy = CASES[case]()
    options: dict[str, Any] = {"seed": SEED, "sampler": sampler, "dtype": torch.float32 if case == "faces" else DTYPE}
    if sampler not in ("smc", "annealed", "feynman-kac"):  # whose steps follow from their levels
        options["steps"] = STEPS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # of runs this short
        return energy.latents.sample((CHAINS, *(energy.event_shape or (2,))), **options)


def evaluate(case: str, points: Tensor) -> dict[str, Tensor]:
    """Returns energies and the first numbers of gradients; nothing where scores alone are known."""
    energy = CASES[case]()
    if not energy.has_value:
        return {}
    value, gradient = (energy.at(0.5) if case == "noised" else ce.calibrate(energy) if case == "negation" else energy).with_gradient(points)
    return {"energy": value.detach(), "gradient": first_numbers(gradient)}


def first_numbers(x: Tensor) -> Tensor:
    """Returns the first eight numbers of each point."""
    return x.flatten(1)[:, :8].contiguous()


def machine() -> str:
    """Returns what bits depend on besides the code, as a hash: the version of torch, the processor, and the instructions in use."""
    about = Path("/proc/cpuinfo")
    models = re.findall(r"(?:model|cpu family|flags).*", about.read_text()) if about.exists() else [platform.processor()]
    return hashlib.sha256(f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {set(models)}".encode()).hexdigest()[:16]


def record() -> None:
    """Writes the file."""
    found: dict[str, Tensor] = {}
    for case, samplers in SAMPLERS.items():
        draws = [draw(case, sampler) for sampler in samplers]
        found |= {f"{case}/{sampler}": first_numbers(x) for sampler, x in zip(samplers, draws, strict=True)}
        points = draws[0][:POINTS].clone()
        found |= {f"{case}/points": points} | {f"{case}/points/{name}": value for name, value in evaluate(case, points).items()}
    safetensors.torch.save_file(found, FILE, {"machine": machine(), "torch": json.dumps(torch.__version__)})


if __name__ == "__main__":
    record()
    print(f"{FILE}: {FILE.stat().st_size / 1e3:.0f} kB")

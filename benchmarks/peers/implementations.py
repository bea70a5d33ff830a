"""The implementations in the comparison of speed, each a function of the number of steps that returns the last points.

All get the same first points, step size and energies, whose weights take no gradient. "Compiled" means that the energy is compiled: the
plain loop and the two other libraries get `torch.compile(formula)`, because they compile nothing themselves, and this library gets
`sample(compile=True)`. The HMC of `torchebm` fails on points with several axes, so it gets flat
points and an energy that unflattens them.
"""

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import torch
from ebm import samplers as of_ebmkit
from torch import Tensor
from torchebm.core import BaseModel
from torchebm.samplers import HamiltonianMonteCarlo, LangevinDynamics

import composable_energy as ce
from benchmarks.peers.energies import Case
from composable_energy_mcmc import HMC, Langevin

Run = Callable[[int], Tensor]
Energy = Callable[[Tensor], Tensor]
BARE, OURS = "bare gradient", "composable-energy"
LEAPFROGS = 10


class Torchebm(BaseModel):
    """An energy in the form that torchebm takes."""

    def __init__(self, energy: Energy, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.energy, self.event = [energy], shape[1:]  # in a list, because a module would be registered and walked at each step

    def forward(self, x: Tensor) -> Tensor:
        return self.energy[0](x.unflatten(1, self.event))


def gradient(energy: Energy, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(energy(x).sum(), x)[0]


def langevin(case: Case) -> dict[str, Callable[[], Run]]:
    """Returns functions that create each implementation of Langevin, by name."""
    h, start = case.step_size, _start(case)

    def step(energy: Energy, x: Tensor) -> Tensor:
        return x - h * gradient(energy, x) + math.sqrt(2 * h) * torch.randn_like(x)

    def whole_step() -> Run:
        @torch.compile(dynamic=False)
        def compiled(x: Tensor, noise: Tensor) -> Tensor:
            return x - h * torch.func.grad(lambda x: case.formula(x).sum())(x) + math.sqrt(2 * h) * noise

        def run(steps: int) -> Tensor:
            x = start
            with torch.no_grad():
                for _ in range(steps):
                    x = compiled(x, torch.randn_like(x))  # drawn inside, it would be many times slower
            return x

        return run

    def torchebm(energy: Energy) -> Run:
        sampler = LangevinDynamics(Torchebm(energy, case.shape), step_size=h)
        return lambda steps: sampler.sample(x=start.flatten(1), n_steps=steps)

    def ebmkit(energy: Energy) -> Run:
        sampler = of_ebmkit.LangevinDynamics(step_size=h)
        return lambda steps: sampler.sample(energy, start, steps=steps)

    def ours(energy: ce.Energy, **options: Any) -> Run:
        sampler = Langevin(2 * h)
        return lambda steps: energy.sample(case.shape, sampler=sampler, init=start, steps=steps, seed=0, **options)

    found = _implementations(case, start, 1, step, torchebm, ebmkit, ours)
    return found | {"loop by hand, whole step compiled": whole_step}


def hmc(case: Case) -> dict[str, Callable[[], Run]]:
    """Returns functions that create each implementation of HMC, by name; all take the same number of leapfrogs, without jitter."""
    eps, start = case.leapfrog, _start(case)

    def torchebm(energy: Energy) -> Run:
        sampler = HamiltonianMonteCarlo(Torchebm(energy, case.shape), step_size=eps, n_leapfrog_steps=LEAPFROGS)
        return lambda steps: sampler.sample(x=start.flatten(1), n_steps=steps)

    def ebmkit(energy: Energy) -> Run:
        sampler = of_ebmkit.HMC(step_size=eps, leapfrog_steps=LEAPFROGS)
        return lambda steps: sampler.sample(energy, start, steps=steps)

    def ours(energy: ce.Energy, **options: Any) -> Run:
        sampler = HMC(eps, leapfrogs=LEAPFROGS, jitter=False)
        return lambda steps: energy.sample(case.shape, sampler=sampler, init=start, steps=steps, seed=0, **options)

    return _implementations(case, start, LEAPFROGS, lambda energy, x: _trajectory(energy, x, eps), torchebm, ebmkit, ours)


def _implementations(
    case: Case, start: Tensor, gradients: int, step: Any, torchebm: Any, ebmkit: Any, ours: Any
) -> dict[str, Callable[[], Run]]:
    """Returns functions that create each implementation, in the order of the tables."""

    def bare(steps: int) -> Tensor:
        for _ in range(steps * gradients):
            result = gradient(case.formula, start)
        return result

    def by_hand(energy: Energy) -> Run:
        def run(steps: int) -> Tensor:
            x = start
            for _ in range(steps):
                x = step(energy, x)
            return x

        return run

    others = {"loop by hand": by_hand, "torchebm": torchebm, "ebmkit": ebmkit}
    found: dict[str, Callable[[], Run]] = {BARE: lambda: bare}
    found |= {name: lambda make=make: make(case.formula) for name, make in others.items()}
    found[OURS] = lambda: ours(case.energy)
    found[f"{OURS}, watched"] = lambda: _hide_bar(ours(case.energy, trace=True, observers=[ce.sampling.Progress()]))
    found |= {f"{name}, compiled": lambda make=make: make(torch.compile(case.formula, dynamic=False)) for name, make in others.items()}
    return found | {f"{OURS}, compiled": lambda: ours(case.energy, compile=True)}


def _trajectory(energy: Energy, x: Tensor, eps: float) -> Tensor:
    """Returns the end of a textbook trajectory: one gradient more than leapfrogs, and the energies of both ends."""

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        energies = energy(x)
        return energies.detach(), torch.autograd.grad(energies.sum(), x)[0]

    p, (before, grad), y = torch.randn_like(x), both(x), x
    before = before + p.square().flatten(1).sum(1) / 2
    p = p - eps / 2 * grad
    for i in range(LEAPFROGS):
        y = y + eps * p
        after, grad = both(y)
        p = p - (eps if i < LEAPFROGS - 1 else eps / 2) * grad
    after = after + p.square().flatten(1).sum(1) / 2
    accepted = torch.rand(len(x)).log() < before - after
    return torch.where(accepted.view(-1, *[1] * (x.ndim - 1)), y, x)


def _start(case: Case) -> Tensor:
    """Returns points of the density: far points can be slower or faster."""
    return case.energy.sample(case.shape, sampler=Langevin(2 * case.step_size), steps=50, seed=0)


def _hide_bar(run: Run) -> Run:
    """Returns a run whose progress bar is written to memory."""

    def without_bar(steps: int) -> Tensor:
        with contextlib.redirect_stderr(io.StringIO()):
            return run(steps)[0]

    return without_bar

"""Checks of samplers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from composable_energy.energies.energy import Energy
from composable_energy.errors import SamplingDiverged, SamplingWarning
from composable_energy.registry import get
from composable_energy.sampling import Info, Noise, Sampler, State, energy_and_gradient, sample
from composable_energy.sampling.wrappers import UnconstrainedEnergy
from composable_energy.supports import coordinates_of
from composable_energy.testing.checks import Banana, Check, Gaussian, SkipCheck, assert_close, build_subject, named_checks, run_checks

_EXACT_CHAINS, _EXACT_STEPS = 20_000, 20
_ENDS = (-4, 5)  # of whole numbers
_MOST_ERRORS = 4.5  # standard errors; a correct sampler exceeds it for one of the five moments in 1 of 30,000 seeds
_MOST_DISTANCE = 2.47  # Kolmogorov's distance times the square root of n; p = 1e-5

SamplerLike = str | type[Sampler] | Sampler


def check_sampler(sampler: SamplerLike, *, expected_failures: Mapping[str, str] | None = None, **options: Any) -> None:
    """Runs the checks of a sampler; its arguments are those of `sampler_checks` and of `run_checks`.

    Raises:
        AssertionError: A check fails.
    """
    run_checks(sampler_checks(sampler, **options), expected_failures)


def sampler_checks(
    sampler: SamplerLike, *, steps: int | None = None, variance: float = 1.0, bias: float = 0.0, exact: bool | None = None
) -> list[Check]:
    """Returns the checks of a sampler. The targets are `Gaussian`, on whole numbers where points are discrete, and `Banana`.

    | name | what is checked |
    |---|---|
    | `build` | it can be built, and `tune`, `init` and `step` return what the driver expects |
    | `shape` | draws have the requested shape, and the dtype of the start |
    | `seed` | the same seed gives the same draws, another seed others; the global random state does not change |
    | `noise` | each chain and each step has different noise |
    | `state` | a step does not change its input state |
    | `values` | a step returns the energies and gradients of its points |
    | `chunks` | draws do not depend on `batch_size` |
    | `resume` | stopping and resuming does not change draws |
    | `exact` | 20,000 exact draws are exact draws after 20 steps, by their moments and Kolmogorov's distance |
    | `moments` | mean and variance of 4,000 draws from a unit Gaussian are within 5 standard errors |
    | `surroundings` | the start, running statistics, and modes and gradients of modules are not changed; draws have no graph |

    Args:
        sampler: The sampler with its options, or its class or name.
        steps: The number of steps to converge on a unit Gaussian; None for its default.
        variance: The variance of its draws from a unit Gaussian, if its step size biases it.
        bias: The relative tolerance of the variance, beyond the noise of 4,000 draws.
        exact: Whether one step leaves any density invariant; None assumes it of a sampler with acceptance and without a fixed schedule.
    """
    return named_checks(_CHECKS, _Subject(sampler, steps, variance, bias, exact))


@dataclass(frozen=True)
class _Subject:
    sampler: SamplerLike
    steps: int | None
    variance: float
    bias: float
    exact: bool | None

    def draw(self, energy: Energy, shape: tuple[int, ...], *, few: bool = True, **options: Any) -> Tensor:
        steps = min(self.steps or 5, 5) if few and self.instance.total_steps is None else self.steps
        if self.instance.traits.check_init is not None:
            options.pop("init", None)  # it may not suit, as where a sampler starts at a noise level
        options = {"seed": 0, "sampler": self.sampler, **options}
        return SamplingWarning.muted(sample, energy, shape, steps=steps, **options)  # of runs this short

    def target(self, event: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float64) -> Gaussian:
        """Returns a unit Gaussian, on the points that the sampler draws; that on whole numbers has nearly the same moments."""
        target = Gaussian(torch.tensor([0.5, -1.0], dtype=dtype) if event is None else torch.zeros(event, dtype=dtype))
        if not self.continuous:
            whole, last = constraints.integer_interval(*_ENDS), target.mean.shape[-1]
            mixed = constraints.cat([whole, constraints.real], -1, [1, last - 1])
            target.support = whole if "discrete" in self.instance.traits.states else mixed
        return target

    @property
    def continuous(self) -> bool:
        return "continuous" in self.instance.traits.states

    @cached_property
    def seen(self) -> Energy:
        """The target as a sampler gets it."""
        target = self.target()
        found = coordinates_of(target.support, (2,), torch.float64, torch.device("cpu"))
        return target if found is None else UnconstrainedEnergy(target, found)

    def start(self, noise: Noise) -> Tensor:
        """Returns a start point for each chain of a noise."""
        x = noise.normal(torch.zeros(len(noise.chains), 2, dtype=torch.float64))
        return x if self.continuous else x.round().clamp(*_ENDS)

    @cached_property
    def tuned(self) -> Sampler:
        """The sampler tuned on a unit Gaussian."""
        noise = Noise(seed=0, chains=range(64)).child("pilot")
        with torch.no_grad():
            return self.instance.tune(self.seen, self.start(noise), noise)[0]

    @cached_property
    def rejects(self) -> bool:
        """Whether it has an acceptance rate; only then it is stable on energies that grow faster than squares."""
        return self.step(self.seen, torch.ones(3, 2, dtype=torch.float64), 1)[1].acceptance is not None

    def step(self, energy: Energy, start: Tensor, step: int) -> tuple[State, Info]:
        """Returns the result of one step of the tuned sampler from a start."""
        noise = Noise(seed=0, chains=range(len(start)))
        with torch.no_grad():
            return self.tuned.step(energy, self.tuned.init(energy, start, noise), noise.at(step))

    def walk(self, energy: Energy) -> list[tuple[State, Mapping[str, Tensor]]]:
        """Returns the states of 50 chains at six steps, each with copies of its tensors from before the next step."""
        noise, found = Noise(seed=0, chains=range(50)), []
        with torch.no_grad():
            state = self.tuned.init(energy, self.start(noise), noise)
            for step in range(1, 7):
                found.append((state, {name: value.clone() for name, value in vars(state).items() if isinstance(value, Tensor)}))
                state = self.tuned.step(energy, state, noise.at(step))[0]
        return found

    @cached_property
    def instance(self) -> Sampler:
        return build_subject(self.sampler, Sampler, lambda name: get("sampler", name)())


def _build(subject: _Subject) -> None:
    assert isinstance(subject.tuned, Sampler), f"`tune` returns a {type(subject.tuned).__name__} in place of a sampler and points"
    result = subject.step(subject.seen, torch.ones(3, 2, dtype=torch.float64), 1)
    assert isinstance(result, tuple) and len(result) == 2, "`step` returns a state and an `Info`"
    for value, kind in zip(result, (State, Info), strict=True):
        assert isinstance(value, kind), f"`step` returns a {type(value).__name__} in place of `{kind.__name__}`"


def _seed(subject: _Subject) -> None:
    start, draws = torch.zeros(6, 2, dtype=torch.float64), []
    with torch.random.fork_rng():
        for seed, global_seed in ((1, 1), (1, 2), (2, 1)):
            before = torch.manual_seed(global_seed).get_state()
            draws.append(subject.draw(subject.target(), (6, 2), seed=seed, init=start))
            assert torch.equal(torch.get_rng_state(), before), "the global random state has changed: draw random numbers from `noise` only"
    first, again, other = draws
    assert torch.equal(first, again), "one seed gives two draws: draw random numbers from `noise` only"
    assert not torch.equal(first, other), "two seeds give the same draws from one start"


def _shape(subject: _Subject) -> None:
    for dtype in (torch.float32, torch.float64):
        for event in ((2,) if "mixed" in subject.instance.traits.states else (1,), (2, 3)):
            drawn = subject.draw(subject.target(event, dtype), (3, *event))
            assert drawn.shape == (3, *event), f"shape {tuple(drawn.shape)}, requested {(3, *event)}"
            assert drawn.dtype == dtype, f"{drawn.dtype} from an energy and a start of {dtype}"
    assert subject.draw(subject.target(), (1, 2)).shape == (1, 2), "a single chain"


def _moments(subject: _Subject) -> None:
    chains, target = 4000, subject.target()
    drawn, spread = subject.draw(target, (chains, 2), few=False), math.sqrt(subject.variance / chains)
    off = (drawn.mean(0) - target.mean).abs().max().item()
    assert off < 5 * spread, f"the mean is off by {off:.3g}, which is {off / spread:.1f} standard errors"
    most = 5 * math.sqrt(2 / chains) + subject.bias
    off = (drawn.var(0) / subject.variance - 1).abs().max().item()
    assert off < most, f"the variance is off by {off:.1%}; expected {subject.variance:.4g} within {most:.1%}"


def _exact(subject: _Subject) -> None:
    if subject.tuned.total_steps is not None:
        raise SkipCheck("it has a fixed schedule")
    if subject.exact is False or (subject.variance, subject.bias) != (1.0, 0.0):
        raise SkipCheck("it is not exact")
    if subject.exact is None and not subject.rejects:
        raise SkipCheck("it never rejects, so a step is not exact; use `exact=True` to check it anyway")
    target, banana, noise = subject.target(), Banana(), Noise(0, range(_EXACT_CHAINS))
    start, mean, sd = banana.exact(noise.child("exact draws")), torch.zeros(()), torch.ones(())
    if not subject.continuous:  # whole numbers, by moments alone; mixed points have one such number
        values = torch.arange(_ENDS[0], _ENDS[1] + 1, dtype=torch.float64)
        shares = torch.softmax(-(values[:, None] - target.mean).square() / 2, 0)
        start = values[torch.multinomial(shares.T, _EXACT_CHAINS, replacement=True, generator=torch.Generator().manual_seed(0)).T]
        mean = (shares * values[:, None]).sum(0)
        sd = (shares * (values[:, None] - mean).square()).sum(0).sqrt()
        if "discrete" not in subject.instance.traits.states:
            start[:, 1], mean[1], sd[1] = target.mean[1] + noise.normal(start)[:, 1], target.mean[1], 1.0
    density = banana if subject.continuous else target
    try:
        drawn = sample(density, start.shape, sampler=subject.sampler, init=start, steps=_EXACT_STEPS, seed=0)
    except SamplingDiverged as error:
        raise AssertionError(f"exact draws do not stay exact: {error}") from error
    errors, distance = measure_deviations(banana.whitened(drawn) if subject.continuous else (drawn - mean) / sd)
    worst, wrong = max(errors, key=lambda name: errors[name]), f"exact draws do not stay exact: after {_EXACT_STEPS} steps"
    assert errors[worst] < _MOST_ERRORS, f"{wrong} the {worst} is {errors[worst]:.1f} standard errors off"
    assert distance < _MOST_DISTANCE or not subject.continuous, f"{wrong} Kolmogorov and Smirnov give p < 1e-5"


def measure_deviations(white: Tensor) -> tuple[dict[str, float], float]:
    r"""Returns how far points are from standard normal: five moments in standard errors, and the Kolmogorov distance times $\sqrt n$."""
    n = len(white)
    first, second = white.double().T
    moments = {
        "first mean": first.mean(),
        "second mean": second.mean(),
        "first variance": (first.square().mean() - 1) / math.sqrt(2),
        "second variance": (second.square().mean() - 1) / math.sqrt(2),
        "correlation": (first * second).mean(),
    }
    errors = {name: abs(float(value)) * math.sqrt(n) for name, value in moments.items()}
    below, steps = torch.special.ndtr(white.double().sort(dim=0).values), torch.arange(n, dtype=torch.float64)[:, None]
    distance = torch.maximum((steps + 1) / n - below, below - steps / n).max().item()
    return {name: error if math.isfinite(error) else math.inf for name, error in errors.items()}, distance * math.sqrt(n)


def _noise(subject: _Subject) -> None:
    (first, _), (second, _) = (subject.step(subject.seen, torch.ones(64, 2, dtype=torch.float64), step) for step in (1, 2))
    assert not torch.equal(first.x, second.x), "two steps get the same noise: use the noise of the step, `noise`"
    assert len(first.x.unique(dim=0)) > 2, "all chains get the same noise: draw some for each row"


def _chunks(subject: _Subject) -> None:
    whole, *parts = (subject.draw(subject.target(), (11, 2), sampler=subject.tuned, batch_size=size) for size in (None, 1, 4))
    for size, part in zip((1, 4), parts, strict=True):
        assert_close(part, whole, f"batch_size {size} and all at once")
    if subject.rejects and subject.continuous:  # so that each chain decides for itself
        options = {"sampler": subject.tuned, "steps": 20 if subject.tuned.total_steps is None else None, "seed": 0}
        try:
            parts, whole = (sample(Banana(), (40, 2), batch_size=size, **options) for size in (17, None))
        except SamplingDiverged:
            raise SkipCheck("it diverges on a curved density; `exact` says whether it accepts wrongly") from None
        assert_close(parts, whole, "batch_size 17 and all at once")


def _resume(subject: _Subject) -> None:
    if subject.instance.total_steps is not None:
        raise SkipCheck("it has a fixed schedule")
    (whole, _), (_, trace) = (sample(subject.target(), (5, 2), sampler=subject.tuned, steps=n, seed=0, trace=True) for n in (6, 2))
    assert_close(sample(subject.target(), (5, 2), steps=4, resume=trace, trace=True)[0], whole, "stopped and resumed, and at once")


def _state(subject: _Subject) -> None:
    for state, before in subject.walk(subject.seen):
        changed = [name for name, value in before.items() if not torch.equal(getattr(state, name), value)]
        assert not changed, f"a step changes {', '.join(changed)} of its state in place; return a new one"


def _values(subject: _Subject) -> None:
    energy = subject.seen if not subject.continuous else Banana() if subject.rejects else subject.target().at(0.0)
    energies, gradients = energy_and_gradient(energy, (state := subject.walk(energy)[-1][0]).x)
    assert (state.energy.dtype, state.grad.dtype) == (energies.dtype, gradients.dtype), "energies or gradients have another dtype"
    kept = energies.isfinite() & gradients.isfinite().all(1)  # a chain of a wrong sampler may have run away, which `exact` reports
    assert_close(state.energy[kept], energies[kept], "energies of the state and of its points", factor=10)
    if state.grad.any():  # a sampler that needs no gradients keeps zeros
        assert_close(state.grad[kept], gradients[kept], "gradients of the state and of its points", factor=10)


class _NetworkEnergy(Gaussian):
    """A Gaussian plus a bounded network, which noise blurs."""

    def __init__(self, network: nn.Module, support: Constraint | None) -> None:
        super().__init__(torch.zeros(2, dtype=torch.float64))
        self.network, self.support = network, support

    def forward(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        return super().forward(x, sigma) + self.network(x).squeeze(-1).tanh() / (1 + torch.as_tensor(sigma) ** 2)


def _surroundings(subject: _Subject) -> None:
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1)).double().train()
    before, start = {name: value.clone() for name, value in network.state_dict().items()}, torch.ones(4, 2, dtype=torch.float64)
    drawn = subject.draw(_NetworkEnergy(network, subject.target().support), (4, 2), init=start)
    assert bool((start == 1).all()), "the start has been changed in place"
    assert drawn.grad_fn is None and not drawn.requires_grad, "draws carry a graph"
    assert all(p.grad is None for p in network.parameters()), "weights got a gradient"
    assert all(p.requires_grad for p in network.parameters()), "weights are frozen afterwards"
    assert all(module.training for module in network.modules()), "modules are in eval mode afterwards"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "running statistics have changed"


_CHECKS = (_build, _shape, _seed, _noise, _state, _values, _chunks, _resume, _exact, _moments, _surroundings)

r"""`log_z`: an estimate of $\log \int e^{-E(x)}\, dx$ with its error."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from composable_energy.algebra import Conditioned
from composable_energy.checks import check_count, check_value
from composable_energy.energy import Energy
from composable_energy.errors import ExpressionError, NormalizerError, OptionError, ShapeError
from composable_energy.lifting import as_energy
from composable_energy.noise import Kind, Noise
from composable_energy.normalizers.bars import bar, bootstrap, effective, log_mean
from composable_energy.normalizers.gaussians import Gaussian, fitted, of_distribution
from composable_energy.normalizers.paths import Path, pilot
from composable_energy.sampling import Sampler, sample, twin
from composable_energy.sampling.context import evaluation_context
from composable_energy.sampling.points import resolve_points
from composable_energy.sampling.selection import SamplerLike, check_density, resolve_sampler

__all__ = ["LogZ", "log_z"]

_LEAST_EFFECTIVE = 0.05
_LEAPFROGS = 8
_REFINE = 4
_FITTED_TO = 1024
_PILOT_STEPS = 60
_FEWEST = 20


@dataclass(frozen=True)
class LogZ:
    r"""An estimate of $\log Z$.

    Attributes:
        value: The estimate.
        standard_error: Its standard error, by a bootstrap over paths. A mode that no path met is not in it.
        lower: The estimate by forward paths alone, a lower bound in expectation.
        upper: That by reverse paths alone, an upper bound in expectation; None where there were no draws of the density.
        effective: The effective sample size of the forward weights, as a share of the paths.
        levels: How many levels the paths had.
        particles: How many forward paths there were.
        draws: How many reverse paths there were.
    """

    value: float
    standard_error: float
    lower: float
    upper: float | None
    effective: float
    levels: int
    particles: int
    draws: int

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        paths = f"{self.particles} paths" + (f" and {self.draws} back" if self.draws else "")
        bounds = "" if self.upper is None else f", {self.lower:.3f} to {self.upper:.3f} by one direction"
        return f"{self.value:.3f} +- {self.standard_error:.3f} ({paths}, {self.levels} levels, {self.effective:.0%} effective{bounds})"


def log_z(
    energy: Any,
    *,
    base: Distribution | None = None,
    draws: Tensor | None = None,
    init: Tensor | None = None,
    event_shape: Sequence[int] | None = None,
    particles: int = 1024,
    levels: int | None = None,
    moves: int = 1,
    sampler: SamplerLike = "hmc",
    seed: int | None = None,
    batch_size: int | None = None,
    noise: Kind | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> LogZ:
    r"""Estimates $\log Z = \log \int e^{-E(x)}\, dx$.

    Paths lead from a Gaussian, whose integral is known, by many levels to the density (annealed importance sampling). Where draws of the
    density are at hand, as many paths lead back from them, and both directions are joined by Bennett's acceptance ratio, which is several
    times more precise. A pilot run finds the levels and the step size at each, which are then the same for all paths. An energy in the
    latent space of a decoder is integrated over latent points.

    A mode far from the base may be met by no path, and then no figure tells that it is missing: give a `base` that covers all modes, or
    `draws` or `init` from each.

    Args:
        energy: The energy, or what `as_energy` lifts.
        base: A `Normal` or `MultivariateNormal` of `torch.distributions` over points, at least as wide as the density. None fits one to
            the draws, else to the end of a pilot run of the sampler.
        draws: Independent draws of the density, such as data or the ends of long chains, with shape $(n, *)$. If the base is fitted to
            them, it takes every other one and the paths start at the rest.
        init: Points where the pilot run starts that the base is fitted to, with shape $(n, *)$; standard normal ones if None.
        event_shape: The shape of one point, where neither the energy nor the options above tell.
        particles: How many paths there are.
        levels: How many levels; None lets the pilot run choose.
        moves: How many steps of the sampler are taken at each level.
        sampler: A sampler that accepts and rejects and has a `step_size`, as for `sample`. A step size is in units of the base's spread.
        seed: The seed; None draws one.
        batch_size: How many points are evaluated together; it does not change the estimate.
        noise: As for `sample`.
        dtype: Of the points, as for `sample`; weights are always summed in float64.
        device: Of the points, as for `sample`.
        **options: The sampler's options.

    Raises:
        NormalizerError: The weights are too uneven for an estimate: less than 5% of the paths count.
        OptionError: An option is unknown or out of range, or the base is no Gaussian.
        ShapeError, DtypeError, DeviceError: Base, draws or `init` do not fit the energy.
        ExpressionError: A condition is not bound, or has a row for each point, or the energy has no value.
        UngroundedError: The energy has no lower bound.
        SamplingDiverged: An energy on the way is not a number.

    Example:
        >>> import torch, composable_energy as ce
        >>> bowl = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(2,))  # Z is 2 pi
        >>> abs(float(ce.log_z(bowl, seed=0)) - 1.838) < 0.02
        True

    References:
        Annealed importance sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008
    """
    energy = as_energy(energy)
    check_value(energy, "`log_z`")
    particles, moves = check_count("particles", particles, least=16), check_count("moves", moves)
    levels = None if levels is None else check_count("levels", levels)
    size = particles if batch_size is None else check_count("batch_size", batch_size)
    seed = secrets.randbits(63) if seed is None else check_count("seed", seed, least=-(2**63)) % 2**64
    if init is not None and (base is not None or draws is not None):
        raise OptionError("init starts the pilot run that the base is fitted to; with `base` or `draws` there is none.")
    if sampler == "hmc":
        options = {"leapfrogs": _LEAPFROGS, **options}
    chosen = resolve_sampler(energy, sampler, options)
    _check_sampler(chosen)
    start = None if base is None else of_distribution(base)
    with evaluation_context(energy):
        check_density(energy, chosen, allow_improper=False)
        energy = twin(energy)
        _check_rows(energy)
        like = _like(energy, start, draws, init, event_shape, dtype, device)
        kind: Kind = noise or ("blocks" if like.device.type == "cpu" else "philox")
        root = Noise(seed, range(particles), kind=kind)
        ends = None if draws is None else _checked("draws", draws, like)
        if start is None and ends is not None:
            start, ends = fitted(ends[::2]), ends[1::2]
        elif start is None:
            start = fitted(_pilot_points(energy, like, init, chosen, root, size))
        path = Path(energy, start.to(like), size, moves)
        schedule = pilot(path, like, chosen, root.child("pilot"), levels, _REFINE)
        z = root.child("base").normal(like.expand(particles, *like.shape).contiguous())
        forward = path.weights(z, schedule, root.child("forward")).cpu()
        _check_effective(energy, forward, len(schedule.levels) - 1, ends is not None)
        reverse = None
        if ends is not None:
            back = root.child("reverse").for_chains(range(len(ends)))
            reverse = path.weights(path.base.standard(ends), schedule, back, reverse=True).cpu()
    lower = log_mean(forward).item()
    return LogZ(
        value=lower if reverse is None else bar(forward, reverse).item(),
        standard_error=bootstrap(forward, reverse, root.child("bootstrap").seed),
        lower=lower,
        upper=None if reverse is None else -log_mean(reverse).item(),
        effective=effective(forward),
        levels=len(schedule.levels) - 1,
        particles=particles,
        draws=0 if reverse is None else len(reverse),
    )


def _like(
    energy: Energy,
    base: Gaussian | None,
    draws: Tensor | None,
    init: Tensor | None,
    event_shape: Sequence[int] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    """Returns zeros with the shape, dtype and device of one point."""
    start = draws if draws is not None else init
    shapes = [tuple(event_shape)] if event_shape is not None else []
    shapes += [tuple(base.mean.shape)] if base is not None else []
    shapes += [tuple(start.shape[1:])] if isinstance(start, Tensor) else []
    shapes += [tuple(energy.event_shape)] if energy.event_shape is not None else []
    if not shapes:
        raise ShapeError(f"{energy} does not say the shape of its points: give event_shape, base, draws or init.")
    asked = resolve_points(energy, (1, *shapes[0]), latents=True, start=start, dtype=dtype, device=device)
    if any(shape != tuple(asked.event) for shape in shapes):
        raise ShapeError(f"{energy} is integrated over points of one shape, got {' and '.join(map(str, dict.fromkeys(shapes)))}.")
    return asked.zeros()


def _checked(name: str, points: Tensor, like: Tensor) -> Tensor:
    """Returns draws whose shape and dtype `resolve_points` has checked."""
    if len(points) < _FEWEST:
        raise OptionError(f"{name} has {len(points)} points; at least {_FEWEST} are of use.")
    if not points.isfinite().all():
        raise OptionError(f"{name} holds points that are not finite.")
    return points.detach().to(like)


def _pilot_points(energy: Energy, like: Tensor, init: Tensor | None, sampler: Sampler, noise: Noise, size: int) -> Tensor:
    """The ends of a pilot run; its seed is its own."""
    n = _FITTED_TO if init is None else len(_checked("init", init, like))
    seed = noise.child("fit").seed
    shape = (n, *like.shape)
    return sample(
        energy,
        shape,
        sampler=sampler,
        steps=_PILOT_STEPS,
        init=init,
        seed=seed,
        batch_size=min(size, n),
        noise=noise.kind,
        latents=True,
        dtype=like.dtype,
        device=like.device,
    )


def _check_rows(energy: Energy) -> None:
    """Raises if a condition has a row for each of several points: there is an integral for each row then."""
    for part in energy.modules():
        for name, value in part.values.items() if isinstance(part, Conditioned) else ():
            if isinstance(value, Tensor) and value.ndim and len(value) > 1:
                raise ExpressionError(f"{part} has {len(value)} rows of {name}, each with an integral of its own: bind one value for all.")


def _check_effective(energy: Energy, weights: Tensor, levels: int, back: bool) -> None:
    share = effective(weights)
    if not share >= _LEAST_EFFECTIVE:
        ways = "a base nearer to its density" + ("" if back else ", or `draws` or `init` from every mode, from which one is fitted")
        raise NormalizerError(
            f"The weights of {len(weights)} paths over {levels} levels to {energy} are worth {share:.1%} of as many equal ones, less than "
            f"{_LEAST_EFFECTIVE:.0%}: a number made of them would be wrong by more than it says. Take more levels (levels={4 * levels}), "
            f"more moves at each, or {ways}."
        )


def _check_sampler(sampler: Sampler) -> None:
    if not is_dataclass(sampler) or "step_size" not in {field.name for field in fields(sampler)}:
        raise OptionError(f"{sampler} has no option step_size that could be set for each level; take 'hmc' or 'mala'.")

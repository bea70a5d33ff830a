r"""The estimator of `composable_energy.log_z`."""

from __future__ import annotations

import warnings
from dataclasses import fields, is_dataclass

from torch import Tensor
from torch.distributions import Distribution

from composable_energy import Energy
from composable_energy.diagnostics import SamplingWarning
from composable_energy.errors import NormalizerError, OptionError
from composable_energy.normalizers import LogZ
from composable_energy.sampling import Noise, Sampler, emit_warnings, sample, warn_of_spacing
from composable_energy_mcmc.annealing.ais import Path, tune_path
from composable_energy_mcmc.annealing.bar import bennett_acceptance_ratio, bootstrap_error, log_mean
from composable_energy_mcmc.annealing.gaussian import Gaussian, fit_gaussian
from composable_energy_mcmc.annealing.resampling import effective_sample_size

_MIN_EFFECTIVE = 0.05
_MIN_DRAWS = 20
_PILOT_CHAINS = 1024
_PILOT_STEPS = 60
_BASE_FACTOR = 1.2  # a base that is narrower than the density misses its tails, a wider one costs a few levels


def estimate_log_z(
    energy: Energy,
    like: Tensor,
    sampler: Sampler,
    noise: Noise,
    *,
    base: Distribution | None,
    draws: Tensor | None,
    init: Tensor | None,
    levels: int | None,
    moves: int,
    batch_size: int,
) -> LogZ:
    r"""Estimates $\log Z$ by annealed importance sampling; with draws in both directions, joined by Bennett's acceptance ratio.

    Args:
        energy: A twin of the energy.
        like: Zeros with the shape, dtype and device of one point.
        sampler: A sampler that accepts and rejects, with an option `step_size`.
        noise: The noise of the forward paths, one chain for each.
        base: The Gaussian at the start; None fits it to the draws, else to the end of a pilot run.
        draws: Independent draws of the density, with shape $(n, *)$.
        init: Where the pilot run starts, with shape $(n, *)$; None starts at standard normal points.
        levels: The number of levels; None takes as many as pilots need.
        moves: The number of steps at each level.
        batch_size: How many points are evaluated together.
    """
    if not is_dataclass(sampler) or "step_size" not in {field.name for field in fields(sampler)}:
        raise OptionError(f"{sampler} has no option step_size that could be set for each level; take 'hmc' or 'mala'.")
    start = None if base is None else Gaussian.from_distribution(base)
    ends = None if draws is None else _check_points("draws", draws, like)
    if start is None and ends is not None:
        start, ends = _fit_base(ends[::2]), ends[1::2]
    elif start is None:
        start = _fit_base(_run_pilots(energy, like, init, sampler, noise, batch_size))
    path = Path(energy, start.to(like), sampler, batch_size, moves)
    schedule = tune_path(path, like, noise.child("pilot"), levels)
    particles, count = len(noise.chains), len(schedule.levels) - 1
    z = noise.child("base").normal(like.expand(particles, *like.shape).contiguous())
    forward, reverse = path.log_weights(z, schedule, noise.child("forward")).cpu(), None
    effective = effective_sample_size(forward) / particles
    _check_effective(energy, effective, particles, count, ends is not None)
    emit_warnings(warn_of_spacing(forward, like.dtype, "log Z"))  # weights are as large as the energies
    if ends is not None:
        back = noise.child("reverse").for_chains(range(len(ends)))
        reverse = path.log_weights(path.base.standardize(ends), schedule, back, reverse=True).cpu()
    lower = log_mean(forward).item()
    return LogZ(
        value=lower if reverse is None else bennett_acceptance_ratio(forward, reverse).item(),
        standard_error=bootstrap_error(forward, reverse, noise.child("bootstrap").seed),
        lower=lower,
        upper=None if reverse is None else -log_mean(reverse).item(),
        effective=effective,
        levels=count,
        particles=particles,
        draws=0 if reverse is None else len(reverse),
    )


def _check_points(name: str, points: Tensor, like: Tensor) -> Tensor:
    """Returns points with the dtype and device of the paths; raises if they are too few or not finite."""
    if len(points) < _MIN_DRAWS:
        raise OptionError(f"{name} has {len(points)} points; at least {_MIN_DRAWS} are of use.")
    if not points.isfinite().all():
        raise OptionError(f"{name} holds points that are not finite.")
    return points.detach().to(like)


def _run_pilots(energy: Energy, like: Tensor, init: Tensor | None, sampler: Sampler, noise: Noise, batch_size: int) -> Tensor:
    """Returns the last points of a pilot run of the sampler."""
    count = _PILOT_CHAINS if init is None else len(_check_points("init", init, like))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # the estimate has a standard error of its own
        return sample(
            energy.latent,
            (count, *like.shape),
            sampler=sampler,
            steps=_PILOT_STEPS,
            init=init,
            seed=noise.child("fit").seed,
            batch_size=min(batch_size, count),
            noise=noise.kind,
            dtype=like.dtype,
        )


def _fit_base(points: Tensor) -> Gaussian:
    spread = points.double().std(0)
    if not (spread.isfinite() & (spread > 0)).all():
        raise OptionError("The points that the base is fitted to are not finite or all the same in a coordinate; give `base` instead.")
    return fit_gaussian(points, _BASE_FACTOR, covariance=True)


def _check_effective(energy: Energy, effective: float, paths: int, levels: int, back: bool) -> None:
    if not effective >= _MIN_EFFECTIVE:
        ways = "a base nearer to its density" + ("" if back else ", or `draws` or `init` from every mode, from which one is fitted")
        raise NormalizerError(
            f"The effective sample size of {paths} paths over {levels} levels to {energy} is {effective:.1%} of their number, less than "
            f"{_MIN_EFFECTIVE:.0%}: an estimate from them would be wrong by more than its standard error. Take more levels "
            f"(levels={4 * levels}), more moves at each level, or {ways}."
        )

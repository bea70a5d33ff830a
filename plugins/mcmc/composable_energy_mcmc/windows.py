"""Windows of adaptation: pilot chains tune the step size, the metric and the length of trajectories of `chees`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.sampling import Noise, State
from composable_energy_mcmc.batch import finite_rows, flatten_points
from composable_energy_mcmc.metric import CovarianceEstimator, Metric
from composable_energy_mcmc.tuning import DualAveraging, find_first_length, lost_to_jumps, mean_rate, redraw_outliers, take_step

if TYPE_CHECKING:
    from composable_energy_mcmc.hamiltonian import ChEES

_STEPS, _WINDOWS = 32, 3  # of a window, and the fewest windows
_TRAJECTORY, _LEAPFROGS = 1.5, 16  # about a quarter of a period of whitened points; and the most leapfrogs of a window
_POINTS = 30  # for each coordinate of a dense metric, from windows in which energies stay the same
_DIRECTIONS = 4  # in which chains move slowly: sums of coordinates that no coordinate shows
_SHORT = 8  # times shorter than the first steps of a window, steps may be so because of jumps
_ERRORS, _FACTOR = 3.0, 1.6  # within which mean energies and scales count as the same
_SLOW, _LONG_TRIAL = 6.0, 32  # steps: a short trial is sure of correlation times below that, else a longer one follows
_COSTLIER, _CHEAPER = 1.2, 0.95  # of the cost so far: what a longer trajectory may cost after a slow one, and after a fast one
_TRIALS = 2  # the search by powers of two ends after two that cost more
_BETWEEN = (0.75, 1.5)  # of the best power of two, tried at last
_TRIAL, _LAGS = 8, 3  # steps, a cycle of trajectory lengths; and the lags of their correlations
_CORRELATION_TIMES, _LONGEST_WARMUP = 2, 50  # steps of the warm-up of chains


def adapt_metric(sampler: ChEES, energy: Energy, state: State, noise: Noise) -> tuple[ChEES, State, Tensor]:
    """Tunes step size and metric in windows, until energies and scales stay the same; returns slow directions, $(d, k)$, too."""
    kind = None if isinstance(sampler.metric, Metric) or sampler.metric == "identity" or sampler.step_size is not None else sampler.metric
    sampler, stable, left, number = replace(sampler, metric=sampler.whitening), False, sampler.tuning_steps, 0
    points = None if kind is None else CovarianceEstimator(kind, state.x)
    while True:
        number += 1
        trajectory = None if number == 1 and kind is not None else sampler.trajectory or _TRAJECTORY
        window = _adapt_step_size(sampler, energy, state, noise.child(f"window {number}"), min(left, _STEPS), trajectory, points)
        state = redraw_outliers(energy, window.state, noise.child(f"redraw {number}"))
        left, stable, before = left - _STEPS, window.stable, stable
        metric = None if points is None else points.metric(state.x.dtype)
        same = metric is None or _scale_ratio(metric, sampler.whitening) < _FACTOR
        enough = points is None or not points.wide or sampler.whitening.kind != "dense" or points.count >= _POINTS * state.x[0].numel()
        if left <= 0 or (number >= _WINDOWS and stable and before and same and enough):
            return replace(sampler, step_size=window.step_size), state, _slow_directions(sampler, window.mean)
        if points is not None and not (stable and same):
            points = CovarianceEstimator(points.kind, state.x)
        sampler = sampler if metric is None else replace(sampler, metric=metric)


def choose_trajectory(sampler: ChEES, energy: Energy, state: State, noise: Noise, directions: Tensor) -> tuple[ChEES, State]:
    """Tunes the trajectory to the fewest gradients for an effective draw, and the warm-up by the longest correlation time.

    A trajectory that was given is tried alone. Else it tries 2, 4, 8, ... leapfrogs, and at last three quarters and one and a half of the
    best. Slow chains get a longer trial. There it takes the longer one of two trajectories with nearly equal costs: a trial sees less of
    the slow motion of short ones.
    """
    step_size, found, least = sampler.step_size or 0.0, None, math.inf
    best = sampler if sampler.trajectory else replace(sampler, trajectory=_TRAJECTORY)

    def is_better(leapfrogs: float) -> bool:
        """Tries a trajectory, and takes it if it costs less, or little more where chains are slow and it is longer."""
        nonlocal best, found, least, state
        trial = replace(sampler, trajectory=leapfrogs * step_size)
        mixing = measure_mixing(trial, energy, state, noise.child(f"{leapfrogs:g} leapfrogs"), directions=directions)
        if mixing.longest > _SLOW:
            mixing = measure_mixing(trial, energy, mixing.state, noise.child(f"{leapfrogs:g} leapfrogs again"), _LONG_TRIAL, directions)
        state = mixing.state
        slow, longer = found is None or found.longest > _SLOW, found is None or leapfrogs * step_size > (best.trajectory or 0.0)
        if (slow and not longer) or mixing.cost >= (_COSTLIER if slow else _CHEAPER) * least:
            return False
        best, found, least = trial, mixing, min(mixing.cost, least)
        return True

    leapfrogs, worse, chosen = min(2, sampler.max_leapfrogs), 0, 0
    if sampler.trajectory:
        is_better(sampler.trajectory / step_size)
        best, leapfrogs = sampler, math.inf
    while leapfrogs <= sampler.max_leapfrogs and worse < _TRIALS:
        chosen, worse = (leapfrogs, 0) if is_better(leapfrogs) else (chosen, worse + 1)
        leapfrogs *= 2
    for factor in _BETWEEN:
        if 2 <= chosen * factor <= sampler.max_leapfrogs:
            is_better(chosen * factor)
    if found is not None and sampler.warmup is None:
        best = replace(best, warmup=math.ceil(min(_CORRELATION_TIMES * found.longest, _LONGEST_WARMUP)))
    return best, state


@dataclass(frozen=True)
class _Window:
    """The result of a window: the pilot chains, the tuned step size, whether energies stay the same, and the mean of each chain."""

    state: State
    step_size: float
    stable: bool
    mean: Tensor


def _slow_directions(sampler: ChEES, means: Tensor) -> Tensor:
    """Returns the principal directions of the means of chains, whitened: those in which chains are slow. A dense metric leaves none."""
    y = flatten_points(sampler.whitening.whiten(means)).double()
    y = y[y.isfinite().all(1)] if sampler.whitening.kind != "dense" else y[:0]
    y = y - y.mean(0)
    _, vectors = torch.linalg.eigh(y @ y.T / y.abs().sum().clamp_min(1e-300).square())
    axes = y.T @ vectors[:, -_DIRECTIONS:]
    return axes / axes.norm(dim=0).clamp_min(1e-300)


def _adapt_step_size(
    sampler: ChEES, energy: Energy, state: State, noise: Noise, steps: int, trajectory: float | None, points: CovarianceEstimator | None
) -> _Window:
    """Runs a window, and adds the points of its second half to `points`. Trajectories last the given time, or None, with as many leapfrogs
    as a window allows. A step size that the sampler has stays."""

    def trial(length: float) -> ChEES:
        longest = _LEAPFROGS * length
        return replace(sampler, step_size=length, trajectory=longest if trajectory is None else min(trajectory, longest))

    def first_trial(length: float) -> ChEES:
        return replace(sampler, step_size=length, trajectory=length)

    given = sampler.step_size
    first = given or find_first_length(first_trial, energy, state, noise.child("first"))
    averaging, lost = DualAveraging(first), None
    energies, mean, half = [], torch.zeros_like(state.x), steps // 2
    for step in range(1, steps + 1):
        if lost is None and step <= half and averaging.length < first / _SHORT:
            lost = lost_to_jumps(first_trial(first), energy, state, noise.child("jumps"))
            averaging = DualAveraging(first) if lost else averaging
        here = finite_rows(state)
        state, rates, _ = take_step(trial(averaging.length), energy, state, noise.at(step))
        if given is None:
            averaging.add(sampler.acceptance * (1 - (lost or 0.0)) - mean_rate(rates[here], jumps=bool(lost)))
        energies.append(state.energy)
        if step > half:
            mean = mean + (state.x - mean) / (step - half)
            if points is not None:
                points.add(state.x[finite_rows(state)])
    return _Window(state, given or averaging.best, _is_stable(energies), mean)


def _is_stable(energies: list[Tensor]) -> bool:
    """Returns whether the mean energy is the same in the third and in the last quarter of a window, within errors over chains."""
    quarter = max(1, len(energies) // 4)
    change = torch.stack(energies[-quarter:]).mean(0) - torch.stack(energies[-2 * quarter : -quarter] or energies[:1]).mean(0)
    change = change[change.isfinite()].double()
    if len(change) < 2:
        return True
    return bool(change.mean().abs() <= _ERRORS * change.std() / math.sqrt(len(change)))


def _scale_ratio(metric: Metric, before: Metric) -> float:
    """Returns the largest ratio of standard deviations, or its inverse, of points of one metric that another whitens."""
    if (scale := metric.scale) is None:
        return math.inf
    axes = scale if metric.kind == "dense" else torch.diag(scale.flatten())
    sd = flatten_points(before.whiten(axes.T.reshape(-1, *(metric.event or ())))).double().norm(dim=0)
    return max(sd.max().item(), 1 / max(sd.min().item(), 1e-300))


@dataclass(frozen=True)
class Mixing:
    """How fast chains mix."""

    cost: float  # gradients of each chain for an effective draw of that coordinate; infinite if the chains say nothing
    longest: float  # the longest correlation time, in steps
    state: State  # the chains after the trial


def measure_mixing(
    sampler: ChEES, energy: Energy, state: State, noise: Noise, steps: int = _TRIAL, directions: Tensor | None = None
) -> Mixing:
    r"""Returns how fast chains mix.

    The correlation times $\tau_j$ of the coordinates of whitened points and of their squared distances to the median are estimated over
    all chains, by the correlations up to lag 3 and a geometric tail. In a heavy tail few chains decide about those of squares. Those of
    the normal scores of ranks (Vehtari et al., 2021, https://doi.org/10.1214/20-BA1221) do not depend on them, but see little of
    the tail. So $\tau$ is the geometric mean of the longest ones of both, and the cost is $\bar L\, \tau$.
    """
    points, gradients = [state.x], 0
    for step in range(1, steps + 1):
        state, _, count = take_step(sampler, energy, state, noise.at(step))
        points.append(state.x)
        gradients += count
    x = torch.stack([flatten_points(sampler.whitening.whiten(some)).double() for some in points])
    x = x[:, x.isfinite().all(2).all(0)]
    if not x.shape[1]:  # no start is finite, which the chains report
        return Mixing(math.inf, math.inf, state)
    x = x if directions is None else torch.cat([x, x @ directions.to(x)], 2)
    values = torch.cat([x, (x - x.flatten(0, 1).median(0).values).square()], 2)
    order = values.flatten(0, 1).argsort(0)
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device)[:, None].expand_as(order)) + 1.0
    scores = torch.special.ndtri((ranks - 0.375) / (len(ranks) + 0.25)).view_as(values).to(values)
    longest = math.sqrt(_longest_correlation_time(values) * _longest_correlation_time(scores))
    return Mixing(gradients / steps * longest, longest, state)


def _longest_correlation_time(values: Tensor) -> float:
    """Returns the longest correlation time of numbers with shape (steps, chains, k), in steps; infinite if they say nothing. Correlations
    come from mean square differences, which are precise where they are near 1, up to the first that is not positive."""
    values = values - values.mean((0, 1))
    variances = values.square().mean((0, 1))
    times, positive = torch.ones_like(variances), torch.ones_like(variances, dtype=torch.bool)
    lag, correlation = 0, times
    for lag in range(1, min(_LAGS, len(values) // 2) + 1):
        correlation = 1 - ((values[lag:] - values[:-lag]).square().mean((0, 1)) / (2 * variances)).clamp_min(1e-6)
        positive &= ~(correlation <= 0)  # also for NaN, of numbers that do not vary
        times = times + torch.where(positive, 2 * correlation, 0.0)
    ratio = correlation.clamp_min(0) ** (1 / max(lag, 1))
    times = times + torch.where(positive, 2 * correlation * ratio / (1 - ratio), 0.0)
    return times.max().item() if len(times) and times.isfinite().all() else math.inf

r"""Estimates of $\log Z$, the logarithm of $\int e^{-E(x)}\, dx$, by annealed importance sampling."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from composable_energy import Energy, SamplingWarning, as_energy
from composable_energy.errors import CalibrationError, ExpressionError, OptionError, ShapeError
from composable_energy.options import check_integer
from composable_energy.registry import get
from composable_energy.sampling import Noise, Sampler, SamplerLike, has_rows, integration, warn_of_spacing
from composable_energy.supports import join
from composable_energy_mcmc.annealing.ais import Path, tune_path
from composable_energy_mcmc.annealing.path import Gaussian, fit_gaussian
from composable_energy_mcmc.annealing.schedule import effective_sample_size

_LEAPFROGS = 8  # a level is close to the next, so short trajectories are enough
_MIN_EFFECTIVE, _ENOUGH, _HEAVY = 0.05, 500, 0.5  # the tail of fewer weights is not known
_MIN_DRAWS, _FAR, _BORDER = 20, 0.5, 2e-3  # `_FAR` is in coordinates; `_BORDER` is a share of the points
_PILOT_CHAINS, _PILOT_STEPS = 1024, 60
_RESAMPLES, _BISECTIONS, _MARGIN = 200, 60, 30.0  # of the bootstrap, and of Bennett's ratio
_BASE_FACTOR = 1.2  # a base that is narrower than the density misses its tails, a wider one costs a few levels


@dataclass(frozen=True)
class LogZ:
    r"""An estimate of $\log Z$.

    Attributes:
        value: The estimate.
        standard_error: Its standard error, by a bootstrap over paths. It does not include a mode that no path reached, nor a tail.
        lower: The estimate from forward paths alone, a lower bound in expectation.
        upper: The estimate from reverse paths alone, an upper bound in expectation; None without draws of the density.
        effective: The effective sample size of the forward weights, as a share of the paths.
        levels: The number of levels.
        particles: The number of forward paths.
        draws: The number of reverse paths.
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


def estimate_log_z(
    energy: Any,
    *,
    base: Distribution | None = None,
    draws: Tensor | Mapping[str, Tensor] | None = None,
    init: Tensor | Mapping[str, Tensor] | None = None,
    event_shape: Sequence[int] | None = None,
    particles: int = 1024,
    levels: int | None = None,
    moves: int | None = None,
    sampler: SamplerLike = "hmc",
    seed: int | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> LogZ:
    r"""Estimates $\log Z = \log \int e^{-E(x)}\, dx$.

    Annealed importance sampling: paths lead from a Gaussian of known integral, over many levels, to the density. From each draw of the
    density, if there are any, a path leads back; Bennett's acceptance ratio joins both directions, which is several times more precise. A
    pilot run finds the levels and the step size at each, which are then fixed. An energy in the latent space of a decoder is integrated
    over latent points. One with a support is integrated over it, in its unconstrained coordinates if there is no `base`; the measure is
    the surface of a sphere, the volume of all coordinates of a simplex but the last, and that of the subspace of vectors whose sum is 0.

    Of discrete points it is the sum over all states: that of up to 65,536 itself, else by `discrete-smc`. Of mixed points it is the
    integral of the sum over up to 64 combinations of discrete numbers.

    If no path reaches a mode, the estimate and its error miss it: give a `base` that covers all modes, or `draws` or `init` of each.

    Args:
        base: A `Normal` or `MultivariateNormal` of `torch.distributions` over points, at least as wide as the density. None fits one to
            the draws, else to the last points of a pilot run of the sampler.
        draws: Independent draws of the density, such as data or the last points of long chains, with shape $(n, *)$. Without `base`, the
            base is fitted to every other draw and the paths start at the rest.
        init: Where the pilot run starts, with shape $(n, *)$ or a dict of named variables; None starts at standard normal points.
        event_shape: The shape of one point, if neither the energy nor the options above have it.
        levels: The number of levels; None lets the pilot run choose.
        moves: The number of steps of the sampler at each level; None takes 1, and 4 sweeps of discrete points.
        sampler: A sampler that accepts and rejects and has a `step_size`: a name, a class or an instance. A step size is in units of the
            base's spread. The default is `hmc` with trajectories of up to 8 leapfrog steps.
        batch_size: The number of points evaluated together; it does not change the estimate.
        dtype: The dtype of the points; None takes that of `draws` or `init`, else that of the energy's tensors, as for the device. Weights
            are always summed in float64.
        **options: Options of the sampler.

    Raises:
        CalibrationError: The weights are too uneven for an estimate: the effective sample size is less than 5% of the paths.
        OptionError: An option is unknown or out of range, or the base is no Gaussian.
        ShapeError, DtypeError, DeviceError: Base, draws or `init` do not fit the energy.
        ExpressionError: A condition is not bound, or has a row for each point, or the energy has no value.
        UngroundedError: The energy has no lower bound, or grows too slowly for a finite integral.
        SamplingDiverged: An energy on a path is not a number.

    Example:
        >>> import torch, composable_energy as ce
        >>> bowl = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(2,))  # Z is 2 pi
        >>> abs(float(ce.log_z(bowl, seed=0)) - 1.838) < 0.02
        True

    References:
        Annealed importance sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008
    """
    energy = as_energy(energy)
    draws, init = (join(one, energy.variables) if isinstance(one, Mapping) else one for one in (draws, init))
    particles = check_integer("particles", particles, least=16)
    levels, moves = check_integer("levels", levels, optional=True), check_integer("moves", moves, optional=True)
    if init is not None and (base is not None or draws is not None):
        raise OptionError("init is the start of a pilot run, which `base` and `draws` replace: leave it out.")
    if has_rows(energy):
        raise ExpressionError(f"{energy} has rows of conditions, each with an integral of its own: bind one value for all.")
    event = event_of_integral(energy, base, draws, init, event_shape)
    if energy.support is not None and energy.support.is_discrete:
        if sampler != "hmc" or options or any(one is not None for one in (base, draws, init, levels)):
            raise OptionError(f"The points of {energy} are discrete, and the sum over them takes particles, moves, seed and dtype alone.")
        return get("estimator", "log-z-discrete")(energy, event, particles, moves or 4, seed=seed, batch_size=batch_size, dtype=dtype)
    settings: dict[str, Any] = {"sampler": sampler, "seed": seed, "batch_size": batch_size, "dtype": dtype}
    settings["options"] = {"leapfrogs": _LEAPFROGS, **options} if sampler == "hmc" else options
    start, count = draws if draws is not None else init, particles
    if start is not None and base is None:
        settings["init"], count = start, len(start)
    elif start is not None:
        settings |= {"dtype": start.dtype, "device": start.device}
    with integration(energy, (count, *event), unconstrained=base is None, **settings) as problem:
        density, like = problem.plain, problem.points.zeros()
        if "step_size" not in {field.name for field in (fields(problem.sampler) if is_dataclass(problem.sampler) else ())}:
            raise OptionError(f"{problem.sampler} has no option step_size that could be set for each level; take 'hmc' or 'mala'.")
        noise, size = problem.noise.for_chains(range(particles)), particles if batch_size is None else problem.batch_size
        gaussian, ends = None if base is None else Gaussian.from_distribution(base), None
        if draws is not None:
            ends = _check_points("draws", draws if problem.init is None else problem.init, like)
            gaussian, ends = (gaussian, ends) if gaussian is not None else (_fit_base(ends[::2], problem.points.coordinates), ends[1::2])
        elif gaussian is None:
            gaussian = _fit_base(_run_pilots(density, like, problem.init, problem.sampler, noise, size), problem.points.coordinates)
        return _estimate(density, like, Path(density, gaussian.to(like), problem.sampler, size, moves or 1), noise, ends, levels)


def _estimate(energy: Energy, like: Tensor, path: Path, noise: Noise, ends: Tensor | None, levels: int | None) -> LogZ:
    """Returns the estimate from paths forward, and back from `ends`."""
    schedule = tune_path(path, like, noise.child("pilot"), levels)
    particles, count = len(noise.chains), len(schedule.levels) - 1
    z = noise.child("base").normal(like.expand(particles, *like.shape).contiguous())
    forward = path.log_weights(z, schedule, noise.child("forward")).cpu()
    effective, lower, seed = effective_sample_size(forward) / particles, log_mean(forward).item(), noise.child("bootstrap").seed
    _check_weights(energy, forward, effective, count, ends is not None)
    for warning in warn_of_spacing(forward, like.dtype, "log Z"):  # weights are as large as the energies
        warning.emit()
    if ends is None:
        return LogZ(lower, bootstrap_error(forward, None, seed), lower, None, effective, count, particles, draws=0)
    back = noise.child("reverse").for_chains(range(len(ends)))
    reverse = path.log_weights(path.base.standardize(ends), schedule, back, reverse=True).cpu()
    value, error = bennett_acceptance_ratio(forward, reverse).item(), bootstrap_error(forward, reverse, seed)
    return LogZ(value, error, lower, -log_mean(reverse).item(), effective, count, particles, draws=len(reverse))


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
    options: dict[str, Any] = {"sampler": sampler, "steps": _PILOT_STEPS, "init": init, "batch_size": min(batch_size, count)}
    options |= {"seed": noise.child("fit").seed, "dtype": like.dtype}
    # The estimate has a standard error of its own.
    return SamplingWarning.muted(energy.latents.sample, (count, *like.shape), but="varies", **options)


def _fit_base(points: Tensor, coordinates: Any) -> Gaussian:
    """Returns the base for points in these coordinates; warns if some are at the boundary of a support, as draws of `sample` do."""
    if coordinates and (share := (coordinates.rounding(1.1 * points, points.dtype) > _FAR).double().mean().item()) > _BORDER:
        seen = f"log Z is wrong: {share:.2%} of the points are as close to the border of the support as {points.dtype} can tell."
        SamplingWarning("border", seen, "Take dtype=torch.float64, with parameters in it.").emit()
    spread = points.double().std(0)
    if not (spread.isfinite() & (spread > 0)).all():
        raise OptionError("The points that the base is fitted to are not finite or all the same in a coordinate; give `base` instead.")
    return fit_gaussian(points, _BASE_FACTOR, covariance=True)


def _check_weights(energy: Energy, forward: Tensor, effective: float, levels: int, back: bool) -> None:
    """Raises if few paths have most of the weight, and warns if the weights of paths in one direction alone have a heavy tail."""
    if not effective >= _MIN_EFFECTIVE:
        ways = "a base nearer to its density" + ("" if back else ", or `draws` or `init` from every mode, from which one is fitted")
        raise CalibrationError(
            f"The effective sample size of {len(forward)} paths over {levels} levels to {energy} is {effective:.1%} of their number, less "
            f"than {_MIN_EFFECTIVE:.0%}: an estimate from them would be wrong by more than its standard error. Take more levels "
            f"(levels={4 * levels}), more moves at each level, or {ways}."
        )
    if not back and len(forward) >= _ENOUGH and (tail := tail_index(forward)) > _HEAVY:
        seen = f"The weights of {len(forward)} paths to {energy} have a tail of index {tail:.2f}, above {_HEAVY} without a variance: log Z"
        advice = "Give independent `draws` of it, such as E.sample(2000), from which paths lead back, or a `base` as wide as its tails."
        SamplingWarning("tail", f"{seen} is likely too low, by more than its standard error.", advice).emit()


def event_of_integral(
    energy: Energy, base: Distribution | None, draws: Tensor | None, init: Tensor | None, event_shape: Sequence[int] | None
) -> tuple[int, ...]:
    """Returns the shape of a point, from all that have a shape; raises if there is none, or if they differ."""
    if base is not None and not isinstance(base, Distribution):
        raise OptionError(f"base is a Normal or one MultivariateNormal of torch.distributions, got {type(base).__name__}.")
    if event_shape is not None and not isinstance(event_shape, Sequence):
        raise ShapeError(f"event_shape is the shape of one point, such as (2,), got {event_shape!r}.")
    shapes = [tuple(event_shape)] if event_shape is not None else []
    shapes += [(*base.batch_shape, *base.event_shape)] if base is not None else []
    shapes += [tuple(start.shape[1:]) for start in (draws, init) if isinstance(start, Tensor)]
    shapes += [tuple(energy.event_shape)] if energy.event_shape is not None else []
    if not shapes:
        raise ShapeError(f"The shape of the points of {energy} is unknown: give event_shape, base, draws or init.")
    if len(set(shapes)) > 1:
        raise ShapeError(f"{energy} is integrated over points of one shape, got {' and '.join(map(str, dict.fromkeys(shapes)))}.")
    return shapes[0]


def log_mean(log_weights: Tensor) -> Tensor:
    """Returns the logarithm of the mean of weights along the last axis."""
    return torch.logsumexp(log_weights, -1) - math.log(log_weights.shape[-1])


def tail_index(log_weights: Tensor) -> float:
    """Returns the shape of a generalised Pareto distribution of the largest weights, as https://arxiv.org/abs/1507.02646 estimates it."""
    weights = (log_weights.double() - log_weights.max()).exp().sort().values
    count = int(min(len(weights) / 5, 3 * math.sqrt(len(weights))))
    excess, grid = weights[-count:] - weights[-count - 1], torch.arange(0.5, 30 + int(math.sqrt(count)), device=weights.device)
    rates = 1 / excess[-1] + (1 - (len(grid) / grid).sqrt()) / (3 * excess[int(count / 4 + 0.5) - 1])
    shapes = torch.log1p(-rates[:, None] * excess).mean(1)
    shares = torch.softmax(count * ((-rates / shapes).log() - shapes), 0)
    return torch.log1p(-(shares * rates).sum() * excess).mean().item()


def bennett_acceptance_ratio(forward: Tensor, reverse: Tensor) -> Tensor:
    r"""Estimates $c = \log Z_1 - \log Z_0$ from the log weights of paths in both directions, by Bennett's acceptance ratio.

    It solves $\sum_i \sigma(f_i - c - m) = \sum_j \sigma(r_j + c + m)$ with the logistic function $\sigma$ and $m = \log(n_f / n_r)$. The
    weights of the paths $f$ from draws of $p_0$, with shape $(*, n_f)$, have the mean $Z_1 / Z_0$; those of the paths $r$ from draws of
    $p_1$, with shape $(*, n_r)$, have the mean $Z_0 / Z_1$. The result has the shape of the leading axes.

    References:
        Efficient estimation of free energy differences from Monte Carlo data (Bennett, 1976), https://doi.org/10.1016/0021-9991(76)90078-4
    """
    shift = math.log(forward.shape[-1] / reverse.shape[-1])
    both = torch.cat([forward, -reverse], -1)  # a path of weight 0 counts, but bounds nothing
    low = both.where(both.isfinite(), torch.inf).amin(-1) - abs(shift) - _MARGIN
    high = both.where(both.isfinite(), -torch.inf).amax(-1) + abs(shift) + _MARGIN
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        at = middle[..., None] + shift
        too_low = torch.sigmoid(forward - at).sum(-1) > torch.sigmoid(reverse + at).sum(-1)
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return (low + high) / 2


def bootstrap_error(forward: Tensor, reverse: Tensor | None, seed: int) -> float:
    """Returns the standard error of the estimate from log weights of paths, by its standard deviation over resampled paths."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    both = [weights for weights in (forward, reverse) if weights is not None]
    drawn = [weights[torch.randint(len(weights), (_RESAMPLES, len(weights)), generator=generator, device="cpu")] for weights in both]
    return (log_mean(*drawn) if reverse is None else bennett_acceptance_ratio(*drawn)).std().item()

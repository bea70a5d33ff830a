r"""Normalisers: estimates of $\log Z$, the logarithm of $\int e^{-E(x)}\, dx$, and mixtures calibrated with them.

The estimators are plug-ins of the kind `estimator`, functions that a package offers by entry points of the group
`composable_energy.estimators`. This module checks a request and calls them.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from composable_energy.algebra import Conditioned
from composable_energy.checks import check_value
from composable_energy.density import check_tails
from composable_energy.energy import Energy
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.lift import as_energy
from composable_energy.noise import Kind, Noise
from composable_energy.options import check_integer
from composable_energy.registry import get_own
from composable_energy.sampling import SamplerLike, resolve_sampler
from composable_energy.sampling.context import evaluation_context
from composable_energy.sampling.points import PointSpec, resolve_points
from composable_energy.sampling.selection import check_density
from composable_energy.sampling.unconstrained import UnconstrainedEnergy, coordinates_of_start
from composable_energy.supports import format_support, is_full
from composable_energy.twins import twin

_LEAPFROGS = 8  # a level is close to the next, so short trajectories are enough


@dataclass(frozen=True)
class LogZ:
    r"""An estimate of $\log Z$.

    Attributes:
        value: The estimate.
        standard_error: Its standard error, by a bootstrap over paths. It does not include a mode that no path reached.
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

    Annealed importance sampling: paths lead from a Gaussian of known integral, over many levels, to the density. From each draw of the
    density, if there are any, a path leads back; Bennett's acceptance ratio joins both directions, which is several times more precise. A
    pilot run finds the levels and the step size at each, which are then fixed. An energy in the latent space of a decoder is integrated
    over latent points. One with a support is integrated over it, in its unconstrained coordinates if there is no `base`; the measure is
    the surface of a sphere, and the volume of all coordinates of a simplex but the last.

    If no path reaches a mode, neither the estimate nor its error includes it: give a `base` that covers all modes, or `draws` or `init`
    from each.

    Args:
        energy: The energy, or anything that `as_energy` accepts.
        base: A `Normal` or `MultivariateNormal` of `torch.distributions` over points, at least as wide as the density. None fits one to
            the draws, else to the last points of a pilot run of the sampler.
        draws: Independent draws of the density, such as data or the last points of long chains, with shape $(n, *)$. Without `base`, the
            base is fitted to every other draw and the paths start at the rest.
        init: Where the pilot run starts, with shape $(n, *)$; None starts at standard normal points.
        event_shape: The shape of one point, if neither the energy nor the options above have it.
        particles: The number of paths.
        levels: The number of levels; None lets the pilot run choose.
        moves: The number of steps of the sampler at each level.
        sampler: A sampler that accepts and rejects and has a `step_size`: a name, a class or an instance. A step size is in units of the
            base's spread. The default is `hmc` with trajectories of up to 8 leapfrog steps.
        seed: The seed; None draws one.
        batch_size: The number of points evaluated together; it does not change the estimate.
        noise: The kind of noise, `"blocks"` or `"philox"`; None takes blocks on the CPU and philox elsewhere.
        dtype: The dtype of the points; None takes that of `draws` or `init`, else that of the energy's tensors. Weights are always summed
            in float64.
        device: The device of the points; None takes that of `draws` or `init`, else that of the energy's tensors.
        **options: Options of the sampler.

    Raises:
        NormalizerError: The weights are too uneven for an estimate: the effective sample size is less than 5% of the paths.
        OptionError: An option is unknown or out of range, or the base is no Gaussian.
        ShapeError, DtypeError, DeviceError: Base, draws or `init` do not fit the energy.
        ExpressionError: A condition is not bound, or has a row for each point, or the energy has no value.
        UngroundedError: The energy has no lower bound, or grows too slowly for a finite integral.
        SamplingDiverged: An energy on a path is not a number.
        PluginNotFound: No package offers the estimator `log-z`.

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
    particles, moves = check_integer("particles", particles, least=16), check_integer("moves", moves)
    levels = None if levels is None else check_integer("levels", levels)
    size = particles if batch_size is None else check_integer("batch_size", batch_size)
    seed = secrets.randbits(63) if seed is None else check_integer("seed", seed, least=-(2**63)) % 2**64
    if init is not None and (base is not None or draws is not None):
        raise OptionError("init is the start of a pilot run, which `base` and `draws` replace: leave it out.")
    if sampler == "hmc":
        options = {"leapfrogs": _LEAPFROGS, **options}
    chosen = resolve_sampler(energy, sampler, options)
    with evaluation_context(energy):
        check_density(energy, chosen, allow_improper=False)
        known, energy = energy.log_normalizer, twin(energy)
        _check_rows(energy)
        points = _points(energy, base, draws, init, event_shape, dtype, device)
        energy, draws, init = _unconstrained(energy, points, base, draws, init)
        like = points.zeros()
        if known is None:
            start = draws if draws is not None else init
            check_tails(energy, like.new_full((16, *like.shape), torch.inf) if start is None else start, {})
        kind: Kind = noise or ("blocks" if like.device.type == "cpu" else "philox")
        return get_own("estimator", "log-z")(
            energy,
            like,
            chosen,
            Noise(seed, range(particles), kind=kind),
            base=base,
            draws=draws,
            init=init,
            levels=levels,
            moves=moves,
            batch_size=size,
        )


def calibrate(expression: Energy, *, seed: int | None = None, **options: Any) -> Energy:
    r"""Returns an expression whose mixtures draw from each branch in proportion to its weight.

    `A | B` adds $e^{-E_A}$ and $e^{-E_B}$, so a constant added to one energy changes its share, and so does the width of its density.
    Calibration estimates $\log Z$ of each branch of every mixture, for the whole density of the branch with its base; then
    `any_of(A, B, weights=[.7, .3])` has seven draws of A for three of B. Estimates of an earlier calibration are replaced. Without weights,
    a mixture whose shares are known keeps its density: `A | B` and `A ^ B` of distributions. Else the density changes.

    Formulas of events are exact and stay as they are; beside densities they count as one branch. An unsatisfiable branch keeps the share 0.
    A mixture that is the base of an event or of another leaf stays as it is. Parts without a mixture are shared with the expression, not
    copied.

    Args:
        expression: The expression; it stays as it is.
        seed: The seed of all estimates, so that their order has no influence; None draws one.
        **options: Options of `log_z`, for every branch.

    Raises:
        ContradictionError: No point fulfils the whole expression.
        NormalizerError: The estimate for a branch is not reliable.
        UngroundedError: A branch has no density.
        ExpressionError: A branch has no value.
        PluginNotFound: No package offers the estimator `calibrate`.

    Example:
        >>> import torch, composable_energy as ce
        >>> narrow, wide = (ce.as_energy(lambda x, s=s: (x / s).square().sum(1) / 2, event_shape=(2,)) for s in (0.6, 2.0))
        >>> mixture = ce.calibrate(narrow | wide, seed=0)
        >>> [round(z, 1) for z in mixture.log_z]
        [0.8, 3.2]
    """
    seed = secrets.randbits(63) if seed is None else seed
    return get_own("estimator", "calibrate")(as_energy(expression), seed=seed, **options)


def _points(
    energy: Energy,
    base: Distribution | None,
    draws: Tensor | None,
    init: Tensor | None,
    event_shape: Sequence[int] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> PointSpec:
    """Returns the shape, dtype and device of the points, from all that have a shape."""
    if base is not None and not isinstance(base, Distribution):
        raise OptionError(f"base is a Normal or one MultivariateNormal of torch.distributions, got {type(base).__name__}.")
    start = draws if draws is not None else init
    shapes = [tuple(event_shape)] if event_shape is not None else []
    shapes += [(*base.batch_shape, *base.event_shape)] if base is not None else []
    shapes += [tuple(start.shape[1:])] if isinstance(start, Tensor) else []
    shapes += [tuple(energy.event_shape)] if energy.event_shape is not None else []
    if not shapes:
        raise ShapeError(f"The shape of the points of {energy} is unknown: give event_shape, base, draws or init.")
    request = resolve_points(energy, (1, *shapes[0]), latents=True, start=start, dtype=dtype, device=device)
    if any(shape != tuple(request.event) for shape in shapes):
        raise ShapeError(f"{energy} is integrated over points of one shape, got {' and '.join(map(str, dict.fromkeys(shapes)))}.")
    if base is not None and is_full(energy.support):  # a Gaussian over points: the energy is infinite outside of its support
        return replace(request, coordinates=None)
    return request


def _unconstrained(
    energy: Energy, points: PointSpec, base: Distribution | None, draws: Tensor | None, init: Tensor | None
) -> tuple[Energy, Tensor | None, Tensor | None]:
    """Returns the energy in the coordinates of its support, where the integral is the same, with draws and start points in them."""
    coordinates = points.coordinates
    if coordinates is None:
        return energy, draws, init
    if base is not None:
        raise OptionError(f"base is a Gaussian over points, and {energy} lives on {format_support(energy.support)}: leave it out.")
    draws, init = (None if x is None else coordinates_of_start(energy, coordinates, x) for x in (draws, init))
    return UnconstrainedEnergy(energy, coordinates), draws, init


def _check_rows(energy: Energy) -> None:
    """Raises if a condition has several rows: each row has an integral of its own."""
    for part in energy.modules():
        for name, value in part.values.items() if isinstance(part, Conditioned) else ():
            if isinstance(value, Tensor) and value.ndim and len(value) > 1:
                raise ExpressionError(f"{part} has {len(value)} rows of {name}, each with an integral of its own: bind one value for all.")

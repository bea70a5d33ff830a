"""Checks of the points and energies of an evaluation: shapes, dtypes, devices, values, and what to do about exceptions of functions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import normalize

from composable_energy.errors import ComposableEnergyError, DeviceError, DtypeError, ExpressionError, ShapeError, UngroundedError
from composable_energy.options import ran_out
from composable_energy.supports import join

if TYPE_CHECKING:
    from composable_energy.energies.energy import Energy

_NUMPY = "Can't call numpy() on Tensor that requires grad"
_IN_PLACE = "a leaf Variable that requires grad is being used in an in-place operation"
_HAPPENED, _TERM = "This happened in the energy", "_composable_energy_term"


def check_points(energy: "Energy", x: Tensor) -> None:
    """Raises if points are not a floating batch, or do not fit the shape, dtype or device of an energy."""
    as_points(energy, x)
    if (shape := energy.event_shape) is not None and x.shape[1:] != shape:
        hint, decoder = "", energy.decoder
        if decoder is not None and energy.decoded_shape in (None, x.shape[1:]):
            hint = f" It is an energy of latent points of {type(decoder).__name__}, which has no `encode`: decoded points have no energy."
            if callable(getattr(decoder, "encode", None)):
                hint = " It is one of latent points; for decoded ones write `E(E.decoder.encode(x))`, which scores their reconstruction."
        raise ShapeError(f"{energy} takes points of shape (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}.{hint}")
    if not energy.terms:  # the leaves of a node check their own weights
        check_weights(energy, energy, x)


def as_points(energy: "Energy", x: Any) -> Tensor:
    """Returns points, or those of a mapping of named variables; raises if they are not a batch of a floating dtype."""
    x = join(x, energy.variables) if isinstance(x, Mapping) and energy.variables else x
    if not isinstance(x, Tensor) or x.layout is not torch.strided:
        got = getattr(x, "layout", type(x).__name__)
        raise DtypeError(f"{energy} takes a tensor of points, got {got}; use torch.as_tensor, for a sparse tensor `.to_dense()`.")
    if not x.is_floating_point():
        raise DtypeError(f"{energy} takes points of a floating dtype, got {x.dtype}: write `x.float()`, for images `x.float() / 255`.")
    if x.ndim < 1:
        raise ShapeError(f"{energy} takes a batch of points of shape (B, *), got a single number; write `x.unsqueeze(0)`.")
    return x


def check_weights(energy: object, module: nn.Module, x: Tensor) -> None:
    """Raises if points do not fit the dtype or device of the weights of a module, an energy or a part of it."""
    for weight in weights_of(module):
        if weight.is_floating_point():
            if weight.device != x.device:
                raise DeviceError(f"{energy} is on {weight.device}, the points are on {x.device}; move one with `.to(...)`.")
            if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
                raise DtypeError(f"{energy} has {weight.dtype} weights, the points are {x.dtype}; convert one with `.to(...)`.")
            return


def check_energies(energy: "Energy", energies: Tensor, x: Tensor) -> Tensor:
    """Returns the energies if they have shape (B,); (B, 1) would broadcast with (B,) to (B, B) without an error."""
    same_kind = type(energies) is Tensor and energies.dtype is x.dtype and energies.device == x.device
    if same_kind and energies.shape == x.shape[:1] and energies.layout is torch.strided:  # the usual case, quickly
        return energies
    if not isinstance(energies, Tensor) or not energies.is_floating_point():
        got = energies.dtype if isinstance(energies, Tensor) else type(energies).__name__
        raise DtypeError(f"{energy} must return a floating tensor of energies, got {got}.{advise_output(energies)}")
    if energies.layout != torch.strided or energies.device.type != x.device.type:
        got = f"got layout {energies.layout} on {energies.device}"
        raise DtypeError(f"{energy} must return a dense tensor of energies on the device of the points, {x.device}, {got}.")
    if energies.shape == x.shape[:1]:
        return energies
    hint = ""
    if energies.shape == (len(x), 1):
        hint = " If it ends in a layer of one output, add `.squeeze(-1)`."
    elif energies.ndim == 0:
        hint = " Sum over the axes of each point, not over the batch."
    elif energies.ndim > 1 and len(energies) == len(x):
        what = "the energy of a label is `ce.ClassifierEnergy(model, label)`, " if energies.ndim == 2 else ""
        hint = f" Each point needs one number: {what}a sum over the axes of a point is `.flatten(1).sum(1)`."
    shapes = f"of shape {tuple(energies.shape)} for points of shape {tuple(x.shape)}; expected ({len(x)},)"
    raise ShapeError(f"{energy} returned energies {shapes}.{hint}")


def advise_output(output: object) -> str:
    """Returns what to write where a model returns something else than a floating tensor, after a space; empty if there is no advice."""
    for name in ("logits", "loss", "last_hidden_state"):
        if isinstance(getattr(output, name, None), Tensor):
            return f" It has `.{name}`: write a function that returns a number for each point from `model(x).{name}`."
    match output:
        case Mapping():
            key = next((key for key, value in output.items() if isinstance(value, Tensor)), "energy")
            return f" Choose one of its entries, {', '.join(map(repr, output))}: `lambda x: model(x)[{key!r}]`."
        case Sequence() if any(isinstance(part, Tensor) for part in output):
            return " Choose one of its parts: `lambda x: model(x)[0]`."
        case Distribution():
            return " For the energy of points under it write `lambda x: -distribution(...).log_prob(x)`."
        case float() | int():
            return " `.item()` and `float(...)` cut gradients: return a tensor of shape (B,), one number for each point."
        case Tensor():
            return " Return `.float()`, or compute with floating numbers throughout: whole numbers and truth values have no gradient."
    if type(output).__module__.partition(".")[0] == "numpy":
        return " NumPy has no gradients: compute with torch."
    return " Does the function lack a `return`?" if output is None else ""


def check_value(energy: "Energy", use: str, *, evidence: bool = False) -> None:
    """Raises `ExpressionError` if an energy, or its `evidence`, has no value; `use` is the operation that needs it."""
    if energy.evidence_has_value if evidence else energy.has_value:
        return
    leaf = energy
    while parts := _parts_without_value(leaf):
        leaf = parts[0]  # the deepest one
    cause = "" if leaf is energy else f", because of {leaf}"
    ways = "with `|` and `~` the sampler `feynman-kac`, which carries log densities along the noise levels; " if has_levels(energy) else ""
    raise ExpressionError(
        f"{use} needs values of an energy, and {energy} has none{cause}: it has only a gradient (`has_value` is False). Use it with `&`, "
        f"weights and samplers that need only gradients, such as `langevin`; {ways}for anything else give the energy a value."
    )


def has_levels(energy: "Energy") -> bool:
    """Returns whether all parts without value depend on a noise level, along which a sampler can carry their log densities."""
    seen, todo = {energy}, [energy]
    while todo:  # each part once, however often it occurs
        if not (inside := _parts_without_value(part := todo.pop())) and "sigma" not in part.conditions:
            return False
        todo += set(inside) - seen
        seen.update(inside)
    return True


def _parts_without_value(energy: "Energy") -> list["Energy"]:
    return [part for part in (*energy.terms, *(base.energy for base in energy.bases)) if not part.has_value]


def modules_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yields a module and the modules inside, each once, as `modules()`, which makes a generator for each."""
    seen: set[int] = set()  # torch.compile does not know `set[int]()`
    todo = [module]
    while todo:
        if id(part := todo.pop()) not in seen:
            seen.add(id(part))
            yield part
            for inner in reversed(part._modules.values()):
                if inner is not None:
                    todo.append(inner)


def weights_of(module: nn.Module) -> Iterator[Tensor]:
    """Yields the parameters of a module, faster than `parameters()`, which hashes all of them at each evaluation."""
    for part in modules_of(module):
        for parameter in part._parameters.values():
            if parameter is not None:
                yield parameter


def changed_points(energy: object) -> ExpressionError:
    """Returns the error about a function that writes to its points, which other terms and the chains use as well."""
    return ExpressionError(
        f"{energy} changes its points in place, so that other terms and the chains would see them changed: compute a new tensor, such as "
        "`x = x - 1` for `x -= 1`, or `x = x.clone()` first."
    )


def note_evaluation(error: Exception, energy: object, x: Tensor) -> None:
    """Notes on an exception which term of which expression raised it, at how many points; the first energy that it passes is the term."""
    if isinstance(error, RuntimeError) and _NUMPY in str(error):
        raise ExpressionError(f"{energy} calls NumPy, which has no gradient: compute it with torch alone.") from error
    if isinstance(error, RuntimeError) and _IN_PLACE in str(error):
        raise changed_points(energy) from error
    of_shape = type(error) in (RuntimeError, IndexError, TypeError, ValueError, ShapeError) and not ran_out(error)
    if of_shape and _takes_single_points(getattr(energy, "function", None), x):
        text = str(error).strip().partition("\n")[0]
        what = text if isinstance(error, ShapeError) else f"{energy} raised at points of shape {tuple(x.shape)}: {text}."
        raise ShapeError(f"{what} Its function takes one point at a time: `torch.vmap` of it takes a batch.") from error
    if isinstance(error, ComposableEnergyError):  # it names its energy already
        return
    term = vars(error).setdefault(_TERM, str(energy))
    whole = "" if str(energy) == term else f", a term of {energy},"
    others = [note for note in getattr(error, "__notes__", ()) if not note.startswith(_HAPPENED)]
    vars(error)["__notes__"] = [*others, f"{_HAPPENED} {term}{whole} at points of shape {tuple(x.shape)}."]


def _takes_single_points(function: Any, x: Tensor) -> bool:
    """Returns whether a function gives a number for each single point."""
    with suppress(Exception), torch.no_grad():
        found = torch.vmap(function)(x.detach())
        return isinstance(found, Tensor) and x.numel() > 0 and found.shape == x.shape[:1]
    return False


_RADII = (2.0**10, 2.0**20, 2.0**30, 2.0**40)  # where tails are looked at, in spreads of the points
_POINTS, _COORDINATES, _RANDOM = 16, 32, 4
_SHARE = 0.25  # of the points, from which the energy grows too slowly
_ROUNDING, _FALLS = 0.005, 0.5  # of exponents
_FARTHEST = 1e8  # points farther away have lost their place to rounding


def check_tails(energy: "Energy", points: Tensor, conditions: Mapping[str, Any]) -> None:
    r"""Raises if an energy grows too slowly for $\int e^{-E(x)}\, dx$ to be finite, far from given points.

    A density has a finite integral along almost all parallels of any line, so $E \ge s \log t$ with $s > 1$ there; and along almost all
    rays, with $s > d$. The exponent $s$ is measured along coordinates, a few other lines, and rays, from $2^{10}$ to $2^{40}$ spreads of
    the points, with shape $(n, *)$; standard normal ones take their place if one is not finite. An energy on all of $\mathbb{R}^n$ that
    grows too slowly along other lines alone is not found.
    """
    points = points.detach()[:: -(-len(points) // _POINTS)]
    if not points.isfinite().all() or points.abs().max() > _FARTHEST:
        points = _normal(0, points.shape, points)
    for x in (points.double(), points) if points.device.type != "mps" else (points,):  # weights may be in another dtype
        try:
            found, needed = _slowest_growth(energy, x, conditions)
            break
        except Exception:  # of a function that was not written for points so far away
            continue
    else:
        return
    if found <= needed + _ROUNDING:
        falls = "falls" if found < -_FALLS else f"grows like {max(found, 0):.2g} log r"
        hint = "Is this a log density? An energy is minus a log density: negate it. Else" if found < -_FALLS else "So"
        raise UngroundedError(
            f"{energy} has no density: at a large distance r it {falls}, and e^-E has a finite integral only if it grows by more than "
            f"{needed:g} log r. {hint} join it with `&` to a density, or restrict it, as in `E.on(constraints.interval(-10, 10))`; or "
            "insist, in `sample`, with allow_improper=True."
        )


def _slowest_growth(energy: "Energy", points: Tensor, conditions: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the exponent along the line where it is least in relation to what it must be, and what it must be."""
    flat = points.flatten(1) if points.ndim > 1 else points[:, None]
    size, center = flat.shape[1], flat.median(0).values
    spread = max(1.0, (flat - center).abs().median().item())
    # Lines along coordinates of large spread, random ones, and one with the least gradients; and rays from the middle.
    widest = (flat - flat.mean(0)).square().mean(0).argsort(descending=True)[:_COORDINATES]
    lines = [torch.eye(size, device="cpu").to(flat)[widest], _normal(1, (_RANDOM, size), flat)]
    if 1 < size <= _COORDINATES:
        wide = _normal(2, (2 * size, size), flat) + flat.mean(0)
        gradients = energy.with_gradient(wide.reshape(-1, *points.shape[1:]), **conditions)[1].reshape(-1, size)
        lines.append(torch.linalg.svd(normalize(gradients[gradients.isfinite().all(1)], dim=1)).Vh[-1:])
    every = normalize(torch.cat(lines), dim=1)
    ways = [(flat, line, 1) for line in (*every, *-every)]
    ways.append((center.expand_as(flat), normalize(flat - center + 1e-3 * spread, dim=1), size))
    worst, needed = math.inf, 1
    for start, line, need in ways:
        x = torch.cat([start + spread * radius * line for radius in _RADII])
        with torch.no_grad():
            energies = energy(x.reshape(-1, *points.shape[1:]), **conditions).double().reshape(len(_RADII), -1)
        # By which multiple of log t the energies grow, at least somewhere; infinity if it is unknown.
        rounding = torch.finfo(x.dtype).eps * energies.abs().amax(0)
        growth = energies.diff(dim=0).masked_fill(energies[:-1] == -math.inf, -math.inf)
        growth = growth.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf).amax(0)
        known = energies[0].isfinite() & ((rounding < 0.1) | (growth < 0))
        exponents = torch.where(known, growth / math.log(_RADII[1] / _RADII[0]), math.inf).sort().values
        if (found := exponents[math.ceil(_SHARE * len(exponents)) - 1].item()) - need < worst - needed:
            worst, needed = found, need
    return worst, needed


def _normal(seed: int, shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), device="cpu").to(like)

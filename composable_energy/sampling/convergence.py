"""A check of convergence for every call of `sample`, with or without a trace; and what it warns about when it ends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from composable_energy.diagnostics.warnings import (
    LARGEST_BIAS,
    advise,
    chance,
    describe_bias,
    find_point_warnings,
    largest_r_hat,
    warn_of_still_chains,
)
from composable_energy.errors import SamplingWarning, warn_caller
from composable_energy.sampling.chains import Chains, Observer

if TYPE_CHECKING:
    from composable_energy.sampling.trace import Trace
    from composable_energy.supports import Coordinates

_LEAST_STEPS, _LEAST_CHAINS = 20, 16  # of a piece of the steps; for the standard error of a drift
_LEAST_MOVES = 20  # steps without a move, of one chain or of all chains together
_STILL = 0.01  # of the chains, which change a mean by less than its standard error for a few thousand
_NUMBERS = 16  # coordinates, or sums of coordinates with random signs
_MOST_CHAINS = 512  # evenly chosen: with 400 or more the least drift that counts is a share of the deviation, not the standard error
_PIECES, _PIECES_OF_ONE = 2, 8  # of the later half of the steps: of several chains, and of one
_OBSERVED_STEPS = 16  # of each piece, at least: more change nothing where it counts, as steps of slow chains are alike
_DRIFT_ERRORS, _DRIFT_DEVIATIONS = 5.0, 0.25
_R_HAT = 1.1  # of the points that a trace keeps
_SLOW, _RELAXED = 1.25, 1.7  # of final points: all steps are about 14 and 4 relaxation times, with and without rejection
_RATIO_ERRORS = 2.0
_ERROR = 0.1  # standard deviations: a mean of draws with this standard error is worth 100 independent ones
_COARSE = 1 / 8  # the distance of neighbouring numbers: rounded energies change a density by half of it, up and down


class ConvergenceObserver(Observer):
    r"""Finds chains that stand still, that drift, or that do not agree.

    The later half of the steps is divided into two quarters, that of a single chain into eight pieces. From 16 to 31 steps of each piece it
    keeps the energy and up to 16 coordinates or sums of coordinates, for up to 512 chains. They give a drift with its standard error over
    the chains, the split R-hat, and the standard error of the means of the points that a trace keeps. R-hat counts from 1.1 on, where it is
    beyond chance. Where final points alone are returned, it counts from 1.25 on, and from 1.7 on for a sampler without rejection, whose
    relaxation is that of its steps everywhere. With fewer than 80 steps, or 320 of a single chain, only chains that never move are found.
    Diverged chains and runs that an observer ends are not checked, and chains with conditions of their own are not compared.

    Args:
        judge: Whether drift, R-hat and errors are checked; else only chains that stand still.
        coordinates: The coordinates that chains use; None for those of the points.
        kept: The number of steps of which a trace keeps points.
    """

    def __init__(self, *, judge: bool, coordinates: Coordinates | None = None, kept: int = 0) -> None:
        self.judge, self.coordinates, self.kept = judge, coordinates, kept
        self.first = self.middle = 0
        self.every = self.piece = 1
        self.start = self.halfway = self.end = self.signs = torch.empty(0)
        self.seen: list[list[Tensor]] = []  # in each piece
        self.valued = False

    def on_start(self, chains: Chains) -> None:
        self.first, last = chains.step, chains.last_step
        half = min(last // 2, last - self.first)  # of all steps, those of a resumed call included
        pieces = _PIECES if chains.count > 1 else _PIECES_OF_ONE
        self.every = max(1, half // pieces // _OBSERVED_STEPS)
        self.piece = max(self.every, half // pieces - half // pieces % self.every)
        self.middle = last - min(pieces * self.piece, half)
        self.start = self.halfway = chains.state.x
        self.judge = self.judge and self.piece >= _LEAST_STEPS and chains.sampler.stationary
        self.valued = self.judge and chains.energy.has_value

    def on_step(self, chains: Chains, info: object) -> None:
        after = chains.step - self.middle
        if after == 0:
            self.halfway = chains.state.x
        elif after > 0 and self.judge and after % self.every == 0:
            while len(self.seen) <= (after - 1) // self.piece:
                self.seen.append([])
            self.seen[-1].append(self._numbers(chains))

    def on_end(self, chains: Chains, error: BaseException | None) -> None:
        self.judge = self.judge and error is None and chains.step == chains.last_step and bool(chains.active)
        self.end = chains.state.x if chains.active and error is None else self.start[:0]

    def warnings(self, chains: Chains, trace: Trace | None = None) -> list[SamplingWarning]:
        """Returns at most one warning; none about a sampler without a stationary density.

        Branches of a mixture in the trace are not compared with each other, nor chains that started at exact draws.
        """
        if not (chains.sampler.stationary and len(self.end)):
            return []
        active, moved = chains.diverged_at < 0, chains.step - self.middle
        if moved >= _LEAST_MOVES:
            still = _equal_rows(self.halfway, self.end) & active
        else:  # all chains together
            still, moved = _equal_rows(self.start, self.end), chains.step - self.first
            still = still & active & bool(still.all() and len(still) * moved >= _LEAST_MOVES)
        if still.sum() > _STILL * len(still):
            return [warn_of_still_chains(chains.sampler, still.nonzero().flatten().tolist(), len(still), moved)]
        if not self.judge or not active.all():
            return []
        steps, pieces = (self.middle, chains.last_step), [torch.stack(some).cpu().double() for some in self.seen]
        if chains.count >= _LEAST_CHAINS and (drift := _drift(pieces)).max() > 1:
            seen = f"The mean of {self._name(drift)} over all chains still changed between the halves of the steps {steps[0]} to "
            return [SamplingWarning("drift", f"{seen}{steps[1]}: the chains have not converged.", advise("drift", chains.sampler))]
        if not chains.problem.own_conditions:
            groups, exact = (None, False) if trace is None else (trace.branch_of, trace.exact)
            found = self._disagreement(chains, pieces, steps, None if groups is None else groups[:: -(-len(groups) // _MOST_CHAINS)], exact)
            if found is not None:
                return [found]
        estimate = chains.sampler.traits.bias
        bias = None if estimate is None else estimate(chains.sampler, chains.state)
        excess = 0.0 if bias is None else bias.mean().item()
        wide = excess > max(LARGEST_BIAS, 3 * (2 / chains.count) ** 0.5)
        return [SamplingWarning("bias", describe_bias(excess), advise("bias", chains.sampler))] if wide else []

    def _disagreement(
        self, chains: Chains, pieces: list[Tensor], steps: tuple[int, int], groups: Tensor | None, exact: bool
    ) -> SamplingWarning | None:
        """Returns the warning about chains that differ, or about means that are not precise enough."""
        r_hat, least, draws = _compare(pieces, groups)
        count, parts, numbers = len(pieces[0]), pieces[0].shape[1] * len(pieces), len(r_hat)
        usual = _R_HAT if self.kept else _SLOW if chains.sampler.traits.values else _RELAXED
        beyond = (least > _R_HAT) & (r_hat > usual)
        if beyond.any():
            beyond = beyond & (r_hat > largest_r_hat(_R_HAT, count, parts, numbers))
        beyond = beyond | (r_hat > _RELAXED)
        if beyond.any() and not exact:
            worst = torch.where(beyond, r_hat, 0.0)
            name, (first, last) = self._name(worst), steps
            seen = f"The chains do not agree: R-hat is {worst.max():.2f} for {name} over the steps {first} to {last}"
            return SamplingWarning("r_hat", f"{seen}, so each still depends on where it started.", advise("r_hat", chains.sampler))
        draws = draws * (self.kept / (steps[1] - steps[0]))
        few = self.kept and not exact and draws.min() * _ERROR**2 < 1
        if few and draws.min() * _ERROR**2 * chance(parts, numbers) < 1:
            name, least = self._name(-draws), draws.min().item()
            seen = f"The points of the trace are worth about {least:.0f} independent draws of {name}: the standard error "
            return SamplingWarning("ess", f"{seen}of its mean is {least**-0.5:.2f} standard deviations.", advise("ess", chains.sampler))
        return None

    def _numbers(self, chains: Chains) -> Tensor:
        """Returns the energy, if there is one, and coordinates or sums of them, with shape (m, numbers)."""
        every = -(-chains.count // _MOST_CHAINS)
        x, energy = chains.state.x[::every], chains.state.energy[::every]
        x = x if self.coordinates is None else self.coordinates.features(x)
        x = x.reshape(len(x), -1).to(torch.promote_types(x.dtype, torch.float32))
        if x.shape[1] > _NUMBERS:
            self.signs = self.signs if len(self.signs) else _sums(x.shape[1]).to(x)
            x = x @ self.signs
        return torch.cat([energy[:, None].to(x), x], 1) if self.valued else x.clone()

    def _name(self, figures: Tensor) -> str:
        """Returns the name of the number with the largest figure."""
        index = int(figures.argmax()) - self.valued
        return "the energy" if index < 0 else "a sum of coordinates" if len(self.signs) else f"coordinate {index}"


def _drift(pieces: list[Tensor]) -> Tensor:
    """Returns how far the mean over all chains moved, over the largest that chance and a small bias explain, for each number."""
    first, last = pieces[0], pieces[-1]
    change, means = last.mean(0) - first.mean(0), torch.cat([first.mean(0), last.mean(0)])
    within = (first.var(0, correction=0) + last.var(0, correction=0)).mean(0) / 2
    deviation, error = (within + means.var(0)).sqrt(), change.std(0) / len(change) ** 0.5
    return (change.mean(0).abs() / torch.maximum(_DRIFT_ERRORS * error, _DRIFT_DEVIATIONS * deviation)).nan_to_num(0.0)


def _compare(pieces: list[Tensor], groups: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the split R-hat of each number, its lower bound, and how many independent draws all are worth for its mean.

    The bound is some standard errors below: where few pieces in a heavy tail make R-hat large, it is small. The means of groups of
    chains, such as those of the branches of a mixture, may differ.
    """
    count, means = len(pieces[0]), torch.stack([piece.mean(0) for piece in pieces])
    for group in [] if groups is None else groups.unique():
        rows = groups == group
        means[:, rows] -= means[:, rows].mean((0, 1))
    means, variances = means.flatten(0, 1), torch.cat([piece.var(0) for piece in pieces])
    within, between, rest = variances.mean(0), means.var(0), 1 - 1 / count
    ratio = between / within
    error = ((means - means.mean(0)).square() - ratio * variances).std(0) / within / len(means) ** 0.5
    r_hat, least = (torch.stack([ratio, ratio - _RATIO_ERRORS * error]) + rest).clamp_min(0).sqrt().nan_to_num(0.0)
    return r_hat, least, (len(means) * (within * rest + between) / between).nan_to_num(torch.inf)


def _sums(size: int) -> Tensor:
    """Returns the factors of coordinates in sums, with shape (size, numbers): of neighbours, and others with random signs."""
    half, index = _NUMBERS // 2, torch.arange(size)[:, None]
    signs = torch.randint(0, 2, (size, 1), generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1)
    return torch.cat([index * half // size == torch.arange(half), signs * (index % half == torch.arange(half))], 1)


def warn_of_points(trace: Trace, traced: bool) -> list[SamplingWarning]:
    """Returns the warnings about exceptions of the energy, about draws that hardly show a formula, and about chains that stopped.

    The last are left out if the caller gets the trace, whose `diverged` says which chains stopped.
    """
    if not trace.errors and trace.formula_probability is None and (traced or bool((trace.diverged_at < 0).all())):
        return []
    return [warning for warning in find_point_warnings(trace) if warning.kind != "diverged" or not traced]


def warn_of_spacing(energies: Tensor, dtype: torch.dtype, use: str) -> list[SamplingWarning]:
    """Returns the warning about energies so large that numbers of their dtype are too far apart for the differences that count.

    Args:
        energies: Energies at points of the density.
        dtype: The dtype that they were computed in.
        use: What their differences decide, for the message.
    """
    energies = energies[energies.isfinite()]
    typical = energies.abs().median().item() if len(energies) else 0.0
    if typical * torch.finfo(dtype).eps <= _COARSE:
        return []
    spacing = torch.finfo(dtype).eps * 2 ** math.floor(math.log2(typical))
    seen = f"Energies are about {typical:.2g}, where numbers of {dtype} are {spacing:.2g} apart: too coarse for what they decide, {use}."
    advice = "Take dtype=torch.float64, with parameters in it, or leave a constant as large as the energies out of the function."
    return [SamplingWarning("rounding", seen, advice)]


def emit_warnings(found: Iterable[SamplingWarning]) -> None:
    """Emits warnings at the line that called this package. Samplers may call it."""
    for warning in found:
        warn_caller(warning)


def _equal_rows(one: Tensor, other: Tensor) -> Tensor:
    return (one == other).reshape(len(one), -1).all(1).cpu()

"""Traces: what a call of `sample` did, enough to do it again and to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from composable_energy.sampling.sampler import Sampler, State

if TYPE_CHECKING:
    from composable_energy.diagnostics import SamplingWarning, Summary
    from composable_energy.sampling.values import Values

__all__ = ["Policy", "Stopped", "Trace"]

Policy = Literal["raise", "drop", "restart", "keep"]


@dataclass(frozen=True)
class Stopped:
    """Chains that were stopped: their ids, and the state at their last finite points."""

    chains: tuple[int, ...] | range
    state: State


@dataclass
class Trace:
    r"""The record of a call of `sample`. There are $m = n$ chains, or $m = nk$ with `best_of=k`.

    Attributes:
        seed: The seed, also when it was drawn.
        noise: The kind of noise.
        first_chain: The id of the first chain.
        sampler: The sampler with the options it ran with, those that were tuned among them.
        tuned: The names of the sampler's options that were settled on pilot chains.
        steps: How many steps were taken since the start, those before a resume among them.
        shape: The shape that was asked for.
        best_of: How many draws there were for each that was returned.
        on_divergence: What became of chains that diverged.
        batch_size: How many chains were evaluated together.
        chains: The ids, from 0, of the $m$ chains that this is about: all of them, or those of one process.
        burn_in: How many steps passed before points were kept.
        seconds: How long the call took, tuning with it.
        kept: Which chains were returned, by their ids, with shape $(n,)$.
        energies: The energies after each step, with shape (steps, $m$); not a number for chains that were dropped, and for an energy
            without value.
        acceptance: The probability with which each proposal was accepted, with shape (steps, $m$); None if the sampler never rejects.
        scalars: What else the sampler reported of each step, numbers of all chains that took it; see `Info`.
        diverged: Which chains diverged, with shape $(m,)$.
        diverged_at: After how many steps they did, with shape $(m,)$; -1 for the others.
        restarts: How often each chain was started again, with shape $(m,)$.
        points: The points of every k-th step after the burn-in, with shape (draws, $m$, *), for `trace=k`; else None. Latents, for an
            energy that lives in a latent space.
        point_steps: The steps of the points.
        states: What the chains need to go on: their ids, how often they were started again, and the state.
        stopped: The chains that were stopped.
        branch_shares: For a mixture at the top of an expression, the mean share of each branch at the points that were returned, with
            shape $(K,)$; None for any other energy.
        reference: Energies and gradients at points of the chains. A call that resumes the trace compares its energy with them.
    """

    seed: int
    noise: str
    first_chain: int
    sampler: Sampler
    shape: tuple[int, ...]
    best_of: int
    on_divergence: Policy = "raise"
    tuned: tuple[str, ...] = ()
    batch_size: int = 0
    chains: range = range(0)
    steps: int = 0
    burn_in: int = 0
    seconds: float | None = None
    kept: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    energies: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    acceptance: Tensor | None = None
    scalars: dict[str, list[float]] = field(default_factory=dict)
    diverged: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    diverged_at: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    restarts: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    points: Tensor | None = None
    point_steps: list[int] = field(default_factory=list)
    states: list[tuple[tuple[int, ...], int, State]] = field(default_factory=list)
    stopped: list[Stopped] = field(default_factory=list)
    branch_shares: Tensor | None = None
    reference: tuple[Values, ...] = ()

    def summary(self, burn_in: int | None = None) -> Summary:
        """Returns what was done, what came out, and what is wrong; it prints as a table.

        Judged are the points that were kept. Without any it is the energies after the burn-in, or those of the later half of the steps
        where there was none. Chains that diverged are left out.

        Args:
            burn_in: Leaves out so many steps, counted from the start of the chains; None leaves out no more than was left out already.

        Raises:
            OptionError: The burn-in leaves nothing.
        """
        from composable_energy.diagnostics.summary import summarize

        return summarize(self, burn_in)

    def warnings(self, burn_in: int | None = None) -> list[SamplingWarning]:
        """Returns what is wrong: what was seen, and what to do.

        Args:
            burn_in: As for `summary`.
        """
        return list(self.summary(burn_in).warnings)

    def to_arviz(self, name: str = "x", dims: Sequence[str] | None = None, coords: Mapping[str, Sequence[Any]] | None = None) -> Any:
        """Returns what ArviZ takes since its version 1: an `xarray.DataTree`; an older one converts it by `arviz.from_datatree`.

        Its group `posterior` has the recorded points with the axes (chain, draw, *), if there are some, and `sample_stats` the rest: `lp`,
        which is minus the energy, `diverging`, `acceptance_rate`, `step_size`, `n_steps` (leapfrogs) and what else the sampler told.
        Chains have their ids, draws their steps. Chains that were dropped hold what is not a number.

        Args:
            name: The name of the points.
            dims: The names of the axes of a point, such as `("channel", "row", "column")`; numbered ones if None.
            coords: Labels for some of these axes, by name.

        Raises:
            ExtraNotInstalled: The extra `diagnostics` is not installed.
            ShapeError: Names or labels do not fit the points.
        """
        from composable_energy.diagnostics.arviz import to_arviz

        return to_arviz(self, name, dims, coords)

    def to_dict(self) -> dict[str, Any]:
        """Returns NumPy arrays with the axes (chain, draw, *shape); `to_arviz` gives them names.

        The draws are the recorded points where there are some, and all steps of this call otherwise.
        """
        first, kept = self.steps - len(self.energies) + 1, self.kept_steps
        rows = [step - first for step in kept]
        past = (self.diverged_at >= 0)[:, None] & (self.diverged_at[:, None] <= torch.tensor(kept, dtype=torch.int64))
        stats = {"lp": -self.energies[rows].T, "diverging": past}
        if self.acceptance is not None:
            stats["acceptance_rate"] = self.acceptance[rows].T
        return {
            "posterior": {} if self.points is None else {"x": _array(self.points.transpose(0, 1))},
            "sample_stats": {name: _array(value) for name, value in stats.items()},
            "attrs": {
                "seed": self.seed,
                "noise": self.noise,
                "first_chain": self.first_chain,
                "sampler": repr(self.sampler),
                "steps": self.steps,
                "best_of": self.best_of,
            },
        }

    @property
    def kept_steps(self) -> list[int]:
        """The steps of the recorded points where there are some, and all steps of this call otherwise."""
        return self.point_steps if self.points is not None else list(range(self.steps - len(self.energies) + 1, self.steps + 1))

    def __repr__(self) -> str:
        bad = f", {int(self.diverged.sum())} diverged" if self.diverged.any() else ""
        return f"Trace({self.sampler!r}, seed={self.seed}, steps={self.steps}, shape={self.shape}{bad})"


def _array(values: Tensor) -> Any:
    """A NumPy array, of which there is none in bfloat16."""
    return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()

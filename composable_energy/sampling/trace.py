"""Traces: the record of a call of `sample`, enough to repeat it and to resume it, and the values by which its energy is known again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from composable_energy.algebra import Shares
from composable_energy.diagnostics.summary import Summary, summarize
from composable_energy.energies.conditions import parameters_of
from composable_energy.errors import OptionError, SamplingWarning, ShapeError
from composable_energy.lazy import LazyMethod
from composable_energy.sampling.noise import Kind
from composable_energy.sampling.sampler import Sampler, State
from composable_energy.supports import Variables, split

Policy = Literal["raise", "keep"]


@dataclass(frozen=True)
class Values:
    """Energies and gradients at $m$ points of chains, under each of $L$ sets of conditions: by them an energy is known again."""

    chains: Tensor  # ids, (m,)
    x: Tensor  # (m, *)
    energies: Tensor  # (m, L)
    grads: Tensor  # (m, L, *); NaN where none is known, which is not compared

    def is_consistent(self) -> bool:
        """Returns whether the shapes fit together, and all numbers are floating."""
        rows, floating = len(self.x) if self.x.ndim else -1, all(t.is_floating_point() for t in (self.x, self.energies, self.grads))
        same = floating and self.energies.ndim == 2 and len(self.energies) == rows
        return same and self.chains.shape == (rows,) and self.grads.shape == (*self.energies.shape, *self.x.shape[1:])


@dataclass
class Trace:
    r"""The record of a call of `sample`. There are $m = n$ chains.

    Attributes:
        seed: The seed, also when it was drawn.
        noise: The kind of noise: `numpy` on the CPU, `philox` elsewhere.
        first_chain: The id of the first chain.
        sampler: The sampler with the options it ran with, tuned ones included.
        tuned: The names of the sampler's options that pilot chains tuned.
        steps: The number of steps since the start, those before a resume included.
        shape: The requested shape.
        on_divergence: The policy for chains that diverged.
        burn_in: The number of steps before points were kept.
        seconds: The duration of the call, tuning included.
        energies: The energies after each step, with shape (steps, $m$); NaN for an energy without value.
        acceptance: The probability with which each proposal was accepted, with shape (steps, $m$); None if the sampler never rejects.
        scalars: The other numbers that the sampler reported at each step, over all chains that took it; see `Info`.
        diverged_at: The number of steps after which each chain diverged, with shape $(m,)$; -1 for the others.
        relocated: How many chains the sampler could not bring from `init` to the density; they started where pilot chains ended.
        points: The points of every k-th step after the burn-in, with shape (draws, $m$, *), for `trace=k`; else None. They may be latent.
        point_steps: The steps of the points.
        state: The state of all chains, from which they continue, in unconstrained coordinates; None before the start.
        branch_shares: For a mixture at the top of an expression, the mean share of each branch at the returned points, else None.
        branch_of: For a mixture with known shares, the most probable branch of each returned point, down to mixtures inside it, else None.
        exact: Whether chains started at draws of the density, as those of a mixture of distributions do; they need not mix to be draws.
        formula_probability: For events, the mean of P(formula | x) at the points that were returned, by the heads; None without events.
        decoded_probability: The same at the codes of up to 64 decoded points, if the decoder can encode; else None.
        alike: Whether all chains have one density; not if each has bound conditions of its own.
        errors: At how many points the function of the energy raised, pilot chains included; these count as points of infinite energy.
        first_error: The first of these exceptions, as text.
        observed: What `sample` warned about; none of it depends on what the trace records.
        shares: The status of the branch shares: `exact`, `calibrated`, `chosen`, `known` or `unknown`; None for any other energy.
        reference: Energies and gradients at points of the chains. A call that resumes the trace compares its energy with them.
        variables: The named variables that points consist of, with their shapes; none for other points.

    Example:
        >>> x, trace = ce.load("plane/bar").sample(64, steps=20, seed=0, trace=1)
        >>> trace.energies.shape, trace.points.shape
        (torch.Size([20, 64]), torch.Size([20, 64, 2]))
    """

    seed: int
    noise: Kind
    first_chain: int
    sampler: Sampler
    shape: tuple[int, ...]
    on_divergence: Policy = "raise"
    tuned: tuple[str, ...] = ()
    steps: int = 0
    burn_in: int = 0
    seconds: float | None = None
    energies: Tensor = field(default_factory=partial(torch.empty, 0, 0, device="cpu"))
    acceptance: Tensor | None = None
    scalars: dict[str, list[float]] = field(default_factory=dict)
    diverged_at: Tensor = field(default_factory=partial(torch.empty, 0, dtype=torch.int64, device="cpu"))
    relocated: int = 0
    points: Tensor | None = None
    point_steps: list[int] = field(default_factory=list)
    state: State | None = None
    branch_shares: Tensor | None = None
    branch_of: Tensor | None = None
    exact: bool = False
    formula_probability: float | None = None
    decoded_probability: float | None = None
    alike: bool = True
    errors: int = 0
    first_error: str = ""
    observed: tuple[SamplingWarning, ...] = ()
    shares: Shares | None = None
    reference: tuple[Values, ...] = ()
    variables: Variables = field(default_factory=dict)

    @property
    def chains(self) -> range:
        """The ids, counted from 0, of the $m$ chains of this record."""
        return range(len(self.diverged_at))

    def summary(self, burn_in: int | None = None) -> Summary:
        """Returns a summary of the call with its warnings; it prints as a table.

        It assesses the recorded points. Without any it assesses the energies after the burn-in, or those of the later half of the steps
        if there was no burn-in. Chains that diverged are left out.

        Args:
            burn_in: The number of steps to leave out, counted from the start of the chains; None takes the burn-in of the call.

        Raises:
            OptionError: The burn-in leaves nothing.
        """
        return summarize(self, burn_in)

    def warnings(self, burn_in: int | None = None) -> list[SamplingWarning]:
        """Returns the warnings of the summary, for the same burn-in: what was observed, and what to do."""
        return list(self.summary(burn_in).warnings)

    to_arviz = LazyMethod("composable_energy.registry:to_arviz")
    """Returns an `xarray.DataTree`, the format of ArviZ; see `composable_energy_viz.to_arviz`."""

    def to_dict(self) -> dict[str, Any]:
        """Returns NumPy arrays with the axes (chain, draw, *shape); `to_arviz` gives them names. The draws are the recorded points where
        there are some, by the names of variables or as `x`, and all steps of this call otherwise."""
        first, kept = self.steps - len(self.energies) + 1, self.kept_steps
        rows = [step - first for step in kept]
        past = (self.diverged_at >= 0)[:, None] & (self.diverged_at[:, None] <= torch.tensor(kept, dtype=torch.int64, device="cpu"))
        acceptance = {} if self.acceptance is None else {"acceptance_rate": self.acceptance[rows].T}
        stats = {"lp": -self.energies[rows].T, "diverging": past, **acceptance}
        return {
            "posterior": {name: _array(values.transpose(0, 1)) for name, values in self._recorded().items()},
            "sample_stats": {name: _array(value) for name, value in stats.items()},
            "attrs": {"sampler": repr(self.sampler)} | {name: getattr(self, name) for name in ("seed", "noise", "first_chain", "steps")},
        }

    def predict(self, function: Callable[..., Tensor]) -> Tensor:
        """Returns what a function computes of the recorded points, such as draws of new data, with shape (draws, $m$, *).

        Args:
            function: Its arguments are named variables, those that it takes by name, each with shape $(B, *)$; or else the points.

        Raises:
            OptionError: No points were recorded, or the function takes others than the variables.
            ShapeError: The function returns no tensor with a row for each point.
        """
        if not (recorded := {name: values.flatten(0, 1) for name, values in self._recorded().items()}):
            raise OptionError("No points were recorded: draw with `trace=1`, or `trace=k` for every k-th step.")
        taken, rows = parameters_of(function, 0), len(next(iter(recorded.values())))
        if self.variables and (missing := sorted(taken.required - recorded.keys())):
            raise OptionError(f"`predict` has the variables {', '.join(recorded)}, and its function also takes {', '.join(missing)}.")
        own = {name: values for name, values in recorded.items() if taken.open or name in taken.names}
        found = function(**own) if self.variables else function(recorded["x"])
        if not isinstance(found, Tensor) or found.shape[:1] != (rows,):
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ShapeError(f"`predict` takes a function that returns one tensor with a row for each point, ({rows}, *), got {got}.")
        return found.unflatten(0, (len(self.point_steps), -1))

    def _recorded(self) -> dict[str, Tensor]:
        points = {} if self.points is None else {"x": self.points}
        return split(points["x"], self.variables) if points and self.variables else points

    @property
    def diverged(self) -> Tensor:
        """Whether each chain diverged, with shape $(m,)$."""
        return self.diverged_at >= 0

    @property
    def kept_steps(self) -> list[int]:
        """The steps of the recorded points where there are some, and all steps of this call otherwise."""
        return self.point_steps if self.points is not None else list(range(self.steps - len(self.energies) + 1, self.steps + 1))

    def __repr__(self) -> str:
        bad = f", {int(self.diverged.sum())} diverged" if self.diverged.any() else ""
        return f"Trace({self.sampler!r}, seed={self.seed}, steps={self.steps}, shape={self.shape}{bad})"


def _array(values: Tensor) -> Any:
    """Returns a NumPy array; NumPy has no bfloat16."""
    return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()

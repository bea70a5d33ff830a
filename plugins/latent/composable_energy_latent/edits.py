"""Edits of pictures in the latent space: what is asked changes, the rest stays, as latent points flow down a potential."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from composable_energy import Energy, SamplingWarning
from composable_energy.errors import ExpressionError, FileFormatError, OptionError, ShapeError
from composable_energy.files import expanded, read_record, write_record
from composable_energy.options import check_instance, check_integer, check_number
from composable_energy.sampling import twin
from composable_energy_latent.fit import draw_latents
from composable_energy_latent.labels import Keep, Kept, check_contradictions, held_labels, kept_attributes
from composable_energy_latent.lace import EditError, descend

_TENSORS = ("latents", "reached", "distance", "evaluations")


@dataclass(frozen=True, eq=False)
class EditStep:
    """One edit.

    Attributes:
        asked: The text of the expression.
        latents: The latent points after it, with shape $(B, *)$.
        reached: The probability of the expression at each point, with shape $(B,)$; NaN for one that is no event.
        kept: By kept attribute the share of points whose label stayed; of a continuous one 1 minus the mean change in deviations.
        distance: The distance of identities from the original pictures, with shape $(B,)$.
        evaluations: How often each point was evaluated, with shape $(B,)$.
    """

    asked: str
    latents: Tensor
    reached: Tensor
    kept: dict[str, float]
    distance: Tensor
    evaluations: Tensor


@dataclass(frozen=True, eq=False)
class Edits:
    """Edits of some pictures, one after another. An edit gives new `Edits`; the old ones stay as they are.

    Attributes:
        base: The prior.
        original: The latent points at the start, with shape $(B, *)$.
        steps: The edits.
    """

    base: Energy
    original: Tensor
    steps: tuple[EditStep, ...] = ()

    @property
    def latents(self) -> Tensor:
        """The latent points after the last edit."""
        return self.steps[-1].latents if self.steps else self.original

    @property
    def images(self) -> Tensor:
        """The pictures after the last edit."""
        return self._decode(self.latents)

    @property
    def last(self) -> EditStep:
        """The last edit.

        Raises:
            EditError: There is none.
        """
        if not self.steps:
            raise EditError("There is no edit yet, or all were undone.")
        return self.steps[-1]

    def edit(self, expression: Energy, **options: Any) -> Edits:
        """Returns the edits with one more; see `composable_energy_latent.edit`."""
        return edit(self, expression, **options)

    def undo(self, steps: int = 1) -> Self:
        """Returns the edits without the last ones.

        Raises:
            EditError: There are not as many.
        """
        if check_integer("steps", steps) > len(self.steps):
            raise EditError(f"There are {len(self.steps)} edits, so {steps} cannot be undone.")
        return type(self)(self.base, self.original, self.steps[:-steps])

    def between(self, count: int) -> Tensor:
        """Returns pictures on the way of the last edit, with shape (count, B, *): from before it to after it."""
        check_integer("count", count, 2)
        before = self.steps[-2].latents if len(self.steps) > 1 else self.original
        return torch.stack([self._decode(torch.lerp(before, self.last.latents, i / (count - 1))) for i in range(count)])

    def save(self, path: str | Path) -> None:
        """Writes all edits and one picture to a file, for `Edits.load`; the generator is not part of it."""
        tensors = {f"{i}.{name}": getattr(step, name) for i, step in enumerate(self.steps) for name in _TENSORS}
        shown = self._decode(self.original[:1])
        texts = [{"asked": step.asked, "kept": step.kept} for step in self.steps]
        write_record(expanded(path), "edits", 1, {"steps": texts}, {"original": self.original, "shown": shown, **tensors})

    @classmethod
    def load(cls, path: str | Path, base: Energy) -> Self:
        """Reads edits.

        Args:
            path: The file.
            base: The prior with the generator of the edits.

        Raises:
            FileFormatError: The file is missing, damaged, or not one of edits of such latent points and pictures.
        """
        header, tensors = read_record(expanded(path), "edits", 1)
        try:
            original = tensors["original"]
            steps = tuple(
                EditStep(asked=str(text["asked"]), kept=dict(text["kept"]), **{name: tensors[f"{i}.{name}"] for name in _TENSORS})
                for i, text in enumerate(header["steps"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} cannot be read as edits: {error!r}.") from error
        if original.shape[1:] != base.event_shape or any(step.latents.shape != original.shape for step in steps):
            raise FileFormatError(f"{path} has latent points of shape {tuple(original.shape[1:])}, {base} takes {base.event_shape}.")
        found, shown = cls(base, original, steps), tensors.get("shown")
        now = found._decode(original[:1])
        if shown is not None and (shown.shape != now.shape or not torch.allclose(shown.to(now), now, rtol=1e-2, atol=1e-2)):
            raise FileFormatError(f"{path} has edits of pictures of another generator than that of {base}.")
        return found

    def _decode(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return twin(self.base.decoder)(z)  # pyright: ignore[reportOptionalCall]

    def __str__(self) -> str:
        rows = [f"{len(self.original)} pictures, {len(self.steps)} edits"]
        for step in self.steps:
            reached = f"{step.reached.mean().item():.3f}" if not step.reached.isnan().any() else "     "
            kept = f", kept {min(step.kept.values()):.3f}" if step.kept else ""
            rows.append(f"  {step.asked}: reached {reached}{kept}, distance {step.distance.mean().item():.3f}")
        return "\n".join(rows)


_MOVES = 8
_DRAWS, _WIDTH = 256, 0.2  # draws of the prior for the spread of a value, and the share of it that is its width
_ROUNDS = 1000  # tried steps of a point
_STRONGER, _ENOUGH = 3.0, 0.5  # factor of weights in the next round, and the probability beyond which none is needed


@dataclass(frozen=True)
class EditWeights:
    r"""The weights of an edit.

    Args:
        asked: The weight of the evidence of the expression.
        kept: The weight of the evidence of what is kept; for a value $v$ of spread $s$ it is $(v(z) - v(z_0))^2 / 2 (.2 s)^2$.
        logits: The weight of $(f(z) - f(z_0))^2$ for the log odds $f$ of the events that are kept.
        distance: The weight of $\lVert z - z_0 \rVert^2 + \lVert m(z) - m(z_0) \rVert^2$.
        margin: Evidence is averaged over eight moves of $z$ with this standard deviation, in that of the prior. Without it edits stop
            where the heads have just become certain, and they may be wrong there.
        level: The noise level of codes at which heads that take one are asked, in the standard deviation of codes. At low levels they are
            so certain that the flow is stiff.
        prior: The weight of the energy of codes at that level, which keeps them where pictures are; for a prior that takes a level.
        rounds: How often points go on with three times the weights `asked` and `kept`, and half the level, where the expression or a kept
            label has a probability below a half. So only edits that need it are strong.
    """

    asked: float = 3.0
    kept: float = 1.0
    logits: float = 0.01
    distance: float = 0.04
    margin: float = 0.5
    level: float = 1.5
    prior: float = 0.1
    rounds: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_number(name, value, least=0)
        check_integer("rounds", self.rounds, 0)


def edit(
    z: Tensor | Edits,
    expression: Energy,
    *,
    keep: Keep = (),
    base: Energy | None = None,
    weights: EditWeights | None = None,
    identity: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 1e-2,
) -> Edits:
    r"""Moves latent points until their pictures fulfil an expression, near where they were.

    It follows the flow $dz / d\tau = -\nabla U(z)$ over the time 5 of the paper, with

    $$U(z) = w_a\, \text{evidence}(z) + w_p E(z) + w_k \sum_k \text{evidence}_k(z) + w_l \sum_k (f_k(z) - f_k(z_0))^2
      + w_d \bigl( \lVert z - z_0 \rVert^2 + \lVert m(z) - m(z_0) \rVert^2 \bigr) .$$

    Evidence is averaged over random moves of $z$ nearby (`margin`), so that pictures are well inside of what is asked.

    What is kept is the label that each picture has now, or its value of a continuous attribute. If `keep` is a mapping, such as all
    `Attributes`, those that the expression speaks of are skipped; attributes of a list must not contradict the expression.

    Args:
        z: Latent points with shape $(B, *)$, or earlier edits, which are continued.
        expression: What is asked, such as `smiling & ~glasses`, `age(0.3)` or `graded(smiling)(1.0)`.
        keep: Attributes that stay as they are: `Attributes`, or a list of events and continuous attributes.
        base: The prior, if the expression has none.
        weights: The weights; those of `EditWeights` if None.
        identity: Features of pictures with shape $(B, F)$, in which the identity distance is measured; None for the pixels.
        tolerance: The error of a step of the flow.

    Returns:
        The edits, which can be continued, undone and saved.

    Raises:
        EditError: The expression contradicts what is kept or itself, or a latent point is outside the support of the prior.
        ExpressionError: The expression has no prior with a generator.

    References:
        Controllable and compositional generation with latent-space energy-based models (Nie et al., 2021), https://arxiv.org/abs/2110.10873
    """
    check_number("tolerance", tolerance, above=0)
    weights, base = check_instance("weights", weights, EditWeights), _base_of(expression, check_instance("base", base, Energy))
    history = z if isinstance(z, Edits) else Edits(base, _checked(base, z))
    if not history.base.equals(base):
        raise EditError(f"The edits are over {history.base}, {expression} is over another prior or generator: take attributes of one.")
    if expression.unsatisfiable:
        raise EditError(f"No picture fulfils {expression}, so no edit leads to it.")
    first, kept = _features(base, identity, history.original), kept_attributes(keep, expression)
    potential = _Potential(expression, kept, base, history.latents, weights or EditWeights())
    check_contradictions(expression, kept, potential.labels)
    end, evaluations = _follow(potential, tolerance)
    distance = (first - _features(base, identity, end)).flatten(1).square().mean(1).sqrt()
    step = EditStep(str(expression), end, potential.reached(end), potential.stayed(end), distance, evaluations)
    if 2 * (missed := int((step.reached < 0.5).sum())) > len(end):
        seen = f"{missed} of {len(end)} edits end where {expression} has a probability below a half."
        advice = "Weigh it more, as in `weights=EditWeights(asked=10)`, keep less, or ask for something nearer."
        warnings.warn(SamplingWarning("edit", seen, advice), stacklevel=2)
    return Edits(base, history.original, (*history.steps, step))


def _base_of(expression: Energy, base: Energy | None) -> Energy:
    if not isinstance(expression, Energy):
        raise OptionError(f"An edit asks for an expression, got {type(expression).__name__}.")
    bases = [part.energy for part in expression.bases]
    base = bases[0] if base is None and len(bases) == 1 else base
    if base is None or base.decoder is None or base.event_shape is None:
        raise ExpressionError(f"{expression} has no prior with a generator as its base: make attributes over one base, or give `base`.")
    return base


@torch.no_grad()
def _features(base: Energy, identity: Callable[[Tensor], Tensor] | None, z: Tensor) -> Tensor:
    """Returns the features of the pictures of latent points, in which distances are measured, with shape $(B, *)$."""
    pictures: Any = base.decoder(z)  # pyright: ignore[reportOptionalCall]
    found = pictures if identity is None else identity(pictures)
    if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(z):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ShapeError(f"identity returns features with shape (B, F), got {got} for {len(z)} pictures.")
    return found


def _checked(base: Energy, z: Tensor) -> Tensor:
    shape = base.event_shape or ()
    if not isinstance(z, Tensor) or z.shape[1:] != torch.Size(shape) or not len(z):
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ShapeError(f"An edit takes latent points of shape (B, {', '.join(map(str, shape))}) of {base}, got {got}.")
    with torch.no_grad():
        outside = int((~base(z).isfinite()).sum()) if base.has_value else 0
    if outside:
        raise EditError(f"{outside} of {len(z)} latent points are outside the support of {base}.")
    return z.detach().clone()


class _Potential(Energy):
    """The potential of an edit; it evaluates twins, so that the modules of the caller do not change."""

    def __init__(self, expression: Energy, kept: Mapping[str, Kept], base: Energy, start: Tensor, weights: EditWeights) -> None:
        super().__init__()
        parts = [one for part in kept.values() for one in (part.energy, part.opposite) if one is not None]
        copies: Iterator[Any] = iter(twin(nn.ModuleList([expression, base, *parts])))  # together, so that they share the generator
        self.expression, own = next(copies), next(copies)
        self.kept = {name: Kept(next(copies), None if part.opposite is None else next(copies)) for name, part in kept.items()}
        self.base: Any = own
        self.map = getattr(self.base.decoder, "map", None)
        self.start, self.weights = start, weights
        self.strength = start.new_ones(len(start))
        with torch.no_grad():
            self.mapped = start if self.map is None else self.map(start)
            self.set_level(weights.level)
            self.labels = held_labels(self.kept, start)
            self.noise = self._noise(start)
            values = [name for name, part in self.kept.items() if part.opposite is None]
            drawn = draw_latents(own, _DRAWS, 0) if values else start
            self.widths = {name: _WIDTH * self.kept[name].output(drawn).std().clamp(min=1e-6) for name in values}

    def forward(self, z: Tensor, *, rows: Tensor) -> Tensor:
        """Returns the potential, with shape $(b,)$, of points with shape $(b, *)$ that belong to some rows of the start."""
        weights = self.weights
        near = (z.unsqueeze(1) + self.noise).flatten(0, 1)  # what is asked and kept holds nearby, too
        every = rows.repeat_interleave(count := self.noise.shape[1])
        strength = self.strength[rows]
        total = weights.asked * strength * self.noisy.evidence(near, **self._chains(every)).view(-1, count).mean(1)
        if "sigma" in self.base.conditions:
            total = total + weights.prior * self.base(near, sigma=self.level).view(-1, count).mean(1)
        total = total + weights.distance * (z - self.start[rows]).flatten(1).square().sum(1)
        if self.map is not None and (moved := self.map(z)) is not z:
            total = total + weights.distance * (moved - self.mapped[rows]).flatten(1).square().sum(1)
        for name, part in self.near.items():
            away = part.output(z) - self.outputs[name][rows]
            if part.opposite is None:  # in units of a share of the spread: the widths of heads may be so small that the flow is stiff
                total = total + weights.kept * strength * (away / self.widths[name]).square() / 2
            else:
                total = total + weights.logits * away.square()
                total = total + weights.kept * strength * part.evidence(near, self.labels[name][every]).view(-1, count).mean(1)
        return total

    @torch.no_grad()
    def set_level(self, level: float) -> None:
        """Sets the noise level at which heads that take one are asked."""

        def noisy(energy: Energy) -> Energy:
            return energy.given(sigma=level) if "sigma" in energy.conditions else energy

        self.level, self.noisy, kept = level, noisy(self.expression), self.kept.items()
        self.near = {name: Kept(noisy(part.energy), None if part.opposite is None else noisy(part.opposite)) for name, part in kept}
        self.outputs = {name: part.output(self.start) for name, part in self.near.items()}

    def _noise(self, start: Tensor) -> Tensor:
        """Returns the moves of points, the same for all, with shape $(1, K, *)$."""
        if not self.weights.margin:
            return start.new_zeros(1, 1, *start.shape[1:])
        scale = self.weights.margin * draw_latents(self.base, _DRAWS, 0).std().to(start)
        half = torch.randn(_MOVES // 2, *start.shape[1:], generator=torch.Generator().manual_seed(0)).to(start)
        return scale * torch.cat([half, -half]).unsqueeze(0)

    @torch.no_grad()
    def reached(self, z: Tensor) -> Tensor:
        """Returns the probability of the expression, with shape $(B,)$; NaN for one that is no event."""
        if self.expression.formula is None:
            return z.new_full((len(z),), torch.nan)
        return (-self.expression.evidence(z, **self._chains(torch.arange(len(z), device=z.device)))).exp()

    @torch.no_grad()
    def fulfilled(self, z: Tensor) -> Tensor:
        """Returns at which points the expression is probable, and what is kept as probable as before or above a half; of shape $(B,)$."""
        found = self.reached(z).nan_to_num(1.0) >= _ENOUGH
        for name, part in self.kept.items():
            if part.opposite is not None:
                now, before = ((-part.evidence(some, self.labels[name])).exp() for some in (z, self.start))
                found &= now >= before.clamp(max=_ENOUGH)
        return found

    @torch.no_grad()
    def stayed(self, z: Tensor) -> dict[str, float]:
        """Returns how far each kept attribute stayed."""
        return {name: part.stayed(self.labels[name], z) for name, part in self.kept.items()}

    def _chains(self, rows: Tensor) -> dict[str, Tensor]:
        return {"chains": rows} if "chains" in self.expression.conditions else {}


def _follow(potential: _Potential, tolerance: float) -> tuple[Tensor, Tensor]:
    """Returns where the points flow, in the unconstrained coordinates of the prior, and the evaluations of each."""
    end, evaluations = potential.start, potential.start.new_zeros(len(potential.start))
    todo, late = torch.arange(len(end), device=end.device), torch.zeros(len(end), dtype=torch.bool, device=end.device)
    for _ in range(1 + potential.weights.rounds):
        moved, counts, arrived = descend(
            lambda z, rows, todo=todo: potential(z, rows=todo[rows]), potential.base.support, end[todo], tolerance=tolerance, rounds=_ROUNDS
        )
        end, evaluations, late = end.index_copy(0, todo, moved), evaluations.index_add(0, todo, counts), late.index_copy(0, todo, ~arrived)
        if broken := int((~moved.isfinite()).flatten(1).any(1).sum()):
            raise EditError(f"{broken} of {len(end)} edits went to latent points that are not finite: lower the weight `asked`.")
        todo = todo[~potential.fulfilled(end)[todo]]
        if not len(todo):
            break
        potential.strength[todo] *= _STRONGER
        potential.set_level(potential.level / 2)
    if late.any():
        seen = f"{int(late.sum())} of {len(end)} edits were stopped after {_ROUNDS} tried steps, before the end of their way."
        advice = "Narrow values make it stiff: ask for wider ones, keep less, or raise `tolerance`. See `reached` and `kept`."
        warnings.warn(SamplingWarning("edit", seen, advice), stacklevel=3)
    return end, evaluations

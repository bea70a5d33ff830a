"""Attributes of a generator from a labeller of pictures, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import composable_energy as ce
from composable_energy import Energy, GaussianHead
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.options import check_choice, check_integer, check_number
from composable_energy_latent.attributes import WIDTHS, Attributes, FixedWidth, LatentHeads, attribute, network_on
from composable_energy_latent.generator import Generator
from composable_energy_latent.labels import Column, LabelError, Labeller, columns_of_labels, join_labels, label_pictures
from composable_energy_latent.lace import descend

_NORMAL_90 = 1.6449
_BINS = 15
_ROUNDS, _TOLERANCE = 100, 0.1  # of the flow to other labels: tried steps of a point, and the error of a step
_VALUES = 25.0  # the weight of a value there: its width is then a fifth of its spread, as in edits
_CHUNK = 2000
_DECAY = 0.5  # of weights; below it heads learn their pictures by heart, and a sampler finds where they are wrong


def fit_attributes(
    base: Energy,
    labeller: Labeller,
    *,
    names: Sequence[str] | None = None,
    values: Mapping[str, Sequence[str]] | None = None,
    on: Literal["z", "w"] = "z",
    count: int = 10_000,
    rounds: int = 0,
    steps: int = 3_000,
    batch_size: int = 256,
    rate: float = 2e-3,
    width: int = 256,
    layers: int = 2,
    seed: int = 0,
    progress: bool = False,
) -> Attributes:
    """Draws latent points, labels their pictures, trains small heads, and reports accuracy and calibration.

    Labels that are bool or whole numbers become events: `found["smiling"]`, and `found["hair=2"]` for more than two labels. Other numbers
    become continuous attributes, `found["age"](30.0)`. A tenth of the draws of the prior sets the temperatures of the heads (Guo et al.,
    2017) and the widths of continuous ones; another tenth is for the report, `found.report`.

    Args:
        base: The prior, of `latent`.
        labeller: Returns labels of a batch of pictures: tensors of shape $(B,)$ by name, or one with a column for each of `names`.
        names: The names of columns.
        values: The names of labels, such as `{"hair": ("black", "brown")}`, for `found["hair=brown"]`.
        on: What the heads take: latent points `z`, or mapped ones `w`.
        count: The number of pictures.
        rounds: How often the heads are trained again, for edits and for `LACE(draws=0)`, which go where heads are wrong. Half of the
            pictures are draws of the prior then. In each round a flow follows the heads from other draws to other labels, and the
            pictures there are labelled, too. Heads for exact samplers are best with 0.
        steps: Training steps.
        batch_size: Latent points in a step.
        rate: The learning rate at the start; it falls to 0.
        width: Hidden units of the heads.
        layers: Hidden layers of the heads.
        seed: The seed of latent points, weights and batches.
        progress: Whether to show progress bars on stderr.

    Raises:
        LabelError: Labels have a wrong shape, are not finite, or an attribute has too few pictures of a label.

    Example:
        >>> import torch
        >>> from composable_energy_latent import latent
        >>> base = latent(torch.nn.Identity(), 2)
        >>> found = fit_attributes(base, lambda x: {"right": x[:, 0] > 0}, count=1000, steps=200)
        >>> found.report["right"].accuracy > 0.9
        True
    """
    check_choice("on", on, ("z", "w"))
    check_integer("count", count, 100 * (1 + check_integer("rounds", rounds, 0)))
    check_integer("steps", steps)
    check_integer("batch_size", batch_size)
    check_number("rate", rate, above=0)
    began = time.perf_counter()
    parts = [(count // 2 + i) // rounds for i in range(rounds)]  # of the points, those of each round
    z, *starts = draw_latents(base, count, seed).split([count - sum(parts), *parts])
    held_out = len(z) // 10
    labels = label_pictures(base, z, labeller, names, progress)
    events = [event for column in columns_of_labels(labels) for event in _event_names(column, values or {})]
    if len(set(events)) < len(events):
        raise LabelError(f"Attributes must have distinct names, got {', '.join(events)}: change `values`, or the names of the labeller.")
    points = _points(base, z, on)
    sizes: dict[str, Any] = {"width": width, "layers": layers, "mean": points.mean().item(), "scale": points.std().item()}
    test, tune = torch.arange(2 * held_out, device=z.device).split(held_out)

    def trained() -> tuple[LatentHeads, list[Column]]:
        columns = columns_of_labels(labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads = ce.get("encoder", "latent-heads", inputs=points[0].numel(), outputs=columns[-1].columns.stop, **sizes).to(points)
        train = torch.arange(2 * held_out, len(points), device=z.device)
        known = [column.rows(train) for column in columns]
        _train(heads, points[train], known, steps=steps, batch_size=batch_size, rate=rate, seed=seed, progress=progress)
        return heads, columns

    heads, columns = trained()
    for number, start in enumerate(starts):
        away = _driven(base, network_on(on, heads, base.decoder), columns, start, seed + number)
        labels = join_labels([labels, label_pictures(base, away, labeller, names, progress)])
        points = torch.cat([points, _points(base, away, on)])
        heads, columns = trained()
    widths = _calibrate(heads, points[tune], [column.rows(tune) for column in columns])
    rows = _report(heads, points[test], [column.rows(test) for column in columns], widths)
    report = FitReport(tuple(rows), count, held_out, time.perf_counter() - began)
    return Attributes(base, _attributes(base, heads, columns, widths, on, values or {}), report)


def draw_latents(base: Energy, count: int, seed: int) -> Tensor:
    """Returns draws of a prior with shape $(N, *)$: of its distribution, else by the default sampler."""
    if (distribution := getattr(base, "distribution", None)) is not None:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            return distribution.sample((count,))
    return base.latents.sample(count, seed=seed)


def _points(base: Energy, z: Tensor, on: str) -> Tensor:
    if on == "z":
        return z
    generator = cast(Generator, base.decoder)  # `label_pictures` has checked it
    with torch.no_grad():
        return torch.cat([generator.map(part) for part in z.split(1000)])


def _train(
    heads: LatentHeads, points: Tensor, columns: Sequence[Column], *, steps: int, batch_size: int, rate: float, seed: int, progress: bool
) -> None:
    optimizer = torch.optim.AdamW(heads.parameters(), lr=rate, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    heads.train()
    for _ in tqdm(range(steps), desc="train", disable=not progress):
        batch = torch.randint(len(points), (batch_size,), generator=generator).to(points.device)
        outputs = heads(points[batch])
        loss = torch.stack([_head_losses(outputs, column.rows(batch)) for column in columns]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    heads.eval().requires_grad_(False)


def _head_losses(outputs: Tensor, column: Column, *, reduction: str = "mean") -> Tensor:
    """Returns the loss of the outputs of all heads, with shape $(B, C)$, for one attribute."""
    own = outputs[:, column.columns]
    if not column.labels:
        return F.mse_loss(own[:, 0], (column.target - column.centre) / column.scale, reduction=reduction) / 2
    if column.labels == 2:
        return F.binary_cross_entropy_with_logits(own[:, 0], column.target.to(own), reduction=reduction)
    return F.cross_entropy(own, column.target, reduction=reduction)


def _driven(base: Energy, outputs: Callable[[Tensor], Tensor], columns: Sequence[Column], z: Tensor, seed: int) -> Tensor:
    """Returns where latent points flow if the labels of other pictures, drawn at random, are asked of the heads. Heads that are right on
    draws of the prior may be wrong there, and samplers without noise and edits go there."""
    drawn = torch.randint(len(columns[0].target), (len(z),), generator=torch.Generator().manual_seed(seed)).to(z.device)
    asked = [column.rows(drawn) for column in columns]

    def flow(points: Tensor, first: int) -> Tensor:
        def potential(z: Tensor, rows: Tensor) -> Tensor:
            found = outputs(z)
            losses = ((1.0 if part.labels else _VALUES) * _head_losses(found, part.rows(rows + first), reduction="sum") for part in asked)
            return torch.stack([*losses])

        end, _, _ = descend(potential, base.support, points, tolerance=_TOLERANCE, rounds=_ROUNDS)
        return torch.where(unsqueeze_to(end.flatten(1).isfinite().all(1), end), end, points)

    return torch.cat([flow(part, number * _CHUNK) for number, part in enumerate(z.split(_CHUNK))])


@torch.no_grad()
def _calibrate(heads: LatentHeads, points: Tensor, columns: Sequence[Column]) -> list[float]:
    """Sets the temperatures of labels to the best of a grid, and returns them and the widths of values."""
    outputs, widths = heads(points), []
    for column in columns:
        if column.labels:
            grid = torch.logspace(-1.0, 1.0, 81)
            widths.append(grid[torch.stack([_head_losses(outputs / temperature, column) for temperature in grid]).argmin()].item())
            heads.temperature[column.columns] = widths[-1]
        else:
            error = outputs[:, column.start] * column.scale + column.centre - column.target
            width, (low, high) = error.square().mean().sqrt().item(), WIDTHS
            if width >= high:
                known = f"Values of {column.name} are known within {width:.3g}"
                raise LabelError(f"{known}; heads have widths below 2.7: divide them by {10 * width:.0f}.")
            widths.append(max(width, low * 1.01))
    return widths


@torch.no_grad()
def _report(heads: LatentHeads, points: Tensor, columns: Sequence[Column], widths: Sequence[float]) -> list[AttributeReport]:
    outputs, rows = heads(points).double(), []
    for column, width in zip(columns, widths, strict=True):
        own = outputs[:, column.columns]
        if not column.labels:
            error = own[:, 0] * column.scale + column.centre - column.target
            explained = 1 - (error.square().mean() / column.target.double().var()).item()
            coverage = (error.abs() <= _NORMAL_90 * width).double().mean().item()
            rows.append(AttributeReport(column.name, "continuous", 0.0, explained, abs(coverage - 0.9), width))
            continue
        logits = torch.cat([torch.zeros_like(own), own], 1) if column.labels == 2 else own
        probability, label = logits.softmax(1).max(1)
        right, kind = label == column.target, "binary" if column.labels == 2 else "labels"
        share = torch.bincount(column.target).max().item() / len(right)
        place = (probability * _BINS).long().clamp(0, _BINS - 1)  # in bins of the confidence (Guo et al., 2017)
        gaps = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, place, right.double() - probability.double())
        calibration = float(gaps.abs().sum() / max(1, len(right)))
        rows.append(AttributeReport(column.name, kind, share, right.double().mean().item(), calibration, width))
    return rows


def _attributes(
    base: Energy, heads: LatentHeads, columns: Sequence[Column], widths: Sequence[float], on: str, values: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    network = network_on(on, heads, base.decoder)
    for column, width in zip(columns, widths, strict=True):
        if not column.labels:
            head = FixedWidth(network, width, column.start, column.centre, column.scale)
            found[column.name] = GaussianHead(head, base, dims=1, name=column.name)
        elif column.labels == 2:
            found[column.name] = attribute(base, network, column.name, columns=column.columns)
        else:
            for label, name in enumerate(_event_names(column, values)):
                found[name] = attribute(base, network, name, label=label, columns=column.columns)
    return found


def _event_names(column: Column, values: Mapping[str, Sequence[str]]) -> list[str]:
    known = values.get(column.name, ())
    return [f"{column.name}={known[i] if i < len(known) else i}" for i in range(column.labels)] if column.labels > 2 else [column.name]


@dataclass(frozen=True)
class AttributeReport:
    """One attribute on held-out pictures.

    Attributes:
        name: The attribute.
        kind: `binary`, `labels` or `continuous`.
        share: The share of the most frequent label, the accuracy of a guess; 0 for a continuous one.
        accuracy: The share of right labels; for a continuous one the share of the variance that is explained.
        ece: The expected calibration error; for a continuous one $\\lvert c - .9 \\rvert$ with the coverage $c$ of 90 % intervals.
        width: The width of the Gaussian of a continuous attribute; the temperature of labels.
    """

    name: str
    kind: str
    share: float
    accuracy: float
    ece: float
    width: float


@dataclass(frozen=True)
class FitReport:
    """All attributes on held-out pictures.

    Attributes:
        rows: One report for each attribute.
        pictures: How many pictures were labelled.
        held_out: How many of them the figures are from.
        seconds: How long it took.
    """

    rows: tuple[AttributeReport, ...]
    pictures: int
    held_out: int
    seconds: float

    def __getitem__(self, name: str) -> AttributeReport:
        """Returns the report of an attribute."""
        rows = {row.name: row for row in self.rows}
        return rows[check_choice("name", name, tuple(rows))]

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        head = f"{'':{width}}  kind        accuracy  guess   ECE"
        lines = [f"{r.name:{width}}  {r.kind:10}  {r.accuracy:8.3f}  {r.share:5.3f}  {r.ece:.3f}" for r in self.rows]
        return "\n".join([head, *lines, f"{self.pictures} pictures, {self.held_out} held out, {self.seconds:.0f} s"])

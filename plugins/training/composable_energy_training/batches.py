"""Batches by step: the rows of a step are a function of (seed, step) alone, so a run can resume at any step.

Data with an index are shuffled in each epoch; a batch may end one and begin the next. Each process reads an iterable, and takes its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.files import digest_of
from composable_energy.sampling import Noise
from composable_energy_training.objective import Batch

_MOST = 2**28  # numbers that are read, over all rows: a few seconds
_GROUPS = 1024
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Fingerprint:
    """A summary of data by value."""

    digest: str  # a digest of the values that are compared bit by bit
    # For each group of rows with fractions, a weighted sum and the norm. They are compared up to rounding, since such rows may be computed
    # by a network, on another device or with another number of threads.
    sums: Sequence[Sequence[float]] = ()

    def matches(self, other: Fingerprint) -> bool:
        """Returns whether both fingerprints are of the same data."""
        if self.digest != other.digest or len(self.sums) != len(other.sums):
            return False
        ours, theirs = (torch.tensor(sums, dtype=torch.float64).view(-1, 2) for sums in (self.sums, other.sums))
        close = (ours - theirs).abs() <= _ROUNDING * torch.maximum(ours, theirs)[:, 1:]
        return bool((close | ours.isnan() & theirs.isnan() | (ours == theirs)).all())


def fingerprint_rows(count: int, points: Callable[[Tensor], Tensor], labels: Mapping[str, Tensor], *, rounded: bool) -> Fingerprint:
    """Returns the fingerprint of all labels and all rows, or of evenly spaced rows if there are more than $2^{28}$ numbers. `points` is a
    function from indices to rows; `rounded` ones may differ by rounding."""
    digest, sums = digest_of(labels), []
    size = max(1, points(torch.zeros(1, dtype=torch.int64)).numel())
    rows = torch.linspace(0, count - 1, min(count, max(1, _MOST // size)), dtype=torch.float64).round().long()
    length = -(-len(rows) // _GROUPS)
    weights = torch.arange(length * size, dtype=torch.float64).cos_()  # unequal weights detect a changed order of rows
    for group in rows.split(length):
        x = points(group)
        if rounded:
            values = x.detach().to("cpu", torch.float64).flatten()
            sums.append((float(values @ weights[: len(values)]), float(values.norm())))
        else:
            digest = digest_of({"x": x}, digest)
    return Fingerprint(digest, tuple(sums))


Raw = tuple[Tensor, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Prepared:
    """Data whose batches are changed before the model gets them.

    Args:
        data: Data in any form that `Trainer` takes.
        preparation: A function of (points, noise) to points, such as `composable_energy_image.data.Preparation`, or None.

    Raises:
        OptionError: The preparation is no function.
    """

    data: Any
    preparation: Callable[[Tensor, Noise], Tensor] | None

    def __post_init__(self) -> None:
        if self.preparation is not None and not callable(self.preparation):
            raise OptionError(f"preparation must be a function of points and noise, or None, got {self.preparation!r}.")


class BatchLoader:
    """Loads the prepared batches of one process."""

    def __init__(self, data: Any, batch_size: int, rows: range, device: torch.device, dtype: torch.dtype) -> None:
        data, self.preparation = (data.data, data.preparation) if isinstance(data, Prepared) else (data, None)
        self.source, self.batch_size, self.rows, self.device, self.dtype = _as_source(data), batch_size, rows, device, dtype

    def load(self, seed: int, step: int) -> Batch:
        """Returns this process's rows of a step."""
        x, labels = self.source.rows_at(seed, step, self.batch_size, self.rows)
        noise, x = Noise(seed, self.rows, step), x.detach().to(self.device)
        if self.preparation is not None:
            x = self.preparation(x, noise.child("data"))
            if not isinstance(x, Tensor) or x.shape[:1] != (len(self.rows),):
                raise ShapeError(f"The preparation must return a tensor with {len(self.rows)} rows, one for each point.")
        if not x.is_floating_point():
            raise DtypeError(
                f"Training needs points of a floating dtype, the data have {x.dtype}: give `x.float()`, for bytes of images by 255, "
                "`Pictures` of composable_energy_image.data, or `Prepared` data that converts them."
            )
        labels = {name: y.detach().to(self.device, self.dtype if y.is_floating_point() else torch.int64) for name, y in labels.items()}
        return Batch(x.to(self.dtype), labels, noise.child("objective"))


def split_batch(batch: Batch, count: int) -> Iterator[Batch]:
    """Yields a batch in parts of equal size, in order."""
    size = len(batch.x) // count
    for start in range(0, len(batch.x), size):
        part = slice(start, start + size)
        labels = {name: values[part] for name, values in batch.labels.items()}
        yield Batch(batch.x[part], labels, batch.noise.for_chains(batch.noise.chains[part]))


def _as_source(data: Any) -> IndexedSource | IterableSource:
    """Converts training data to a source of batches."""
    if hasattr(data, "images") and hasattr(data, "labels"):
        return IndexedSource(len(data), data.images, {name: labels.values for name, labels in data.labels.items()}, False)
    if isinstance(data, Tensor) or _is_pair(data):
        x, labels = _check_item(data)
        bad = ~x.isfinite().flatten(1).all(1) if x.ndim > 1 else ~x.isfinite()
        if bad.any():
            raise OptionError(f"{int(bad.sum())} of {len(x)} points of the data are not finite, first number {int(bad.nonzero()[0])}.")
        return IndexedSource(len(x), lambda index: x[index.to(x.device)], labels, x.is_floating_point())
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data) and data[0].ndim != data[1].ndim:
        raise OptionError("A pair of points and labels has the labels by name, as `(x, {'y': y})`, got a pair of tensors.")
    if isinstance(data, Iterable) and not isinstance(data, str) and not hasattr(data, "__array__"):
        return IterableSource(data)
    raise _unknown_form("Training takes Pictures, a tensor, a pair of a tensor and labels by name, or an iterable of these", data)


class IndexedSource:
    """Rows with an index, shuffled again in each epoch; `rounded` points may differ by rounding between runs."""

    advice = "a value has changed. Restore the data, give another folder, or delete this one to start again."

    def __init__(self, count: int, points: Callable[[Tensor], Tensor], labels: Mapping[str, Tensor], rounded: bool) -> None:
        if not count:
            raise OptionError("There are no data to train on.")
        self.count, self.points, self.labels, self.rounded = count, points, dict(labels), rounded
        self._orders: dict[tuple[int, int], Tensor] = {}
        self._fingerprint: Fingerprint | None = None

    def rows_at(self, seed: int, step: int, batch_size: int, rows: range) -> Raw:
        """Returns the points and labels of some rows of a step, from 1 on; the seed is that of the order."""
        first = (step - 1) * batch_size
        index = self._index(seed, first + rows.start, first + rows.stop)
        return self.points(index), {name: values[index.to(values.device)] for name, values in self.labels.items()}

    def settings(self) -> dict[str, Any]:
        """Returns the settings that must not change when a run resumes, as plain data."""
        return {"rows": self.count, "labels": sorted(self.labels)}

    def fingerprint(self, step: int, batch_size: int) -> Fingerprint:
        """Returns a fingerprint of the data, which does not depend on the step."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_rows(self.count, self.points, self.labels, rounded=self.rounded)
        return self._fingerprint

    def _index(self, seed: int, start: int, stop: int) -> Tensor:
        """Returns the indices at some positions of the concatenated epochs."""
        parts = []
        while start < stop:
            epoch, position = divmod(start, self.count)
            parts.append(self._order(seed, epoch)[position : position + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)

    def _order(self, seed: int, epoch: int) -> Tensor:
        if (seed, epoch) not in self._orders:
            key = Noise(seed, range(1)).child(f"epoch {epoch}").seed
            order = torch.randperm(self.count, generator=torch.Generator().manual_seed(key % 2**63))
            self._orders = {**dict(list(self._orders.items())[-1:]), (seed, epoch): order}  # a batch may span two epochs
        return self._orders[seed, epoch]


class IterableSource:
    """Rows of an iterable, in its own order, which does not depend on the seed of the run.

    Before each item torch's global generator is seeded by the epoch and the number of the item. So a `DataLoader` shuffles and augments
    reproducibly if it draws from that generator or in worker processes. The fingerprint covers all batches up to a step.
    """

    advice = (
        "its batches up to this step differ now. Either values have changed, or items are drawn at random from a generator that training "
        "does not seed, such as NumPy's or `random`. Draw from torch's global generator, or key the draws by epoch and index; to start "
        "again give another folder, or delete this one."
    )

    def __init__(self, data: Iterable[Any]) -> None:
        self.data = data
        self._restart()

    def rows_at(self, seed: int, step: int, batch_size: int, rows: range) -> Raw:
        self._advance(step, batch_size)
        x, labels = self._batch
        part = slice(rows.start, rows.stop)
        return x[part].clone(), {name: values[part].clone() for name, values in labels.items()}  # a preparation may change them in place

    def settings(self) -> dict[str, Any]:
        return {"rows": "an iterable"}

    def fingerprint(self, step: int, batch_size: int) -> Fingerprint:
        self._advance(max(1, step), batch_size)
        return Fingerprint(self._digest)

    def _restart(self) -> None:
        self._iterator: Iterator[Any] | None = None
        self._epoch, self._count, self._step, self._digest = 0, 0, 0, ""
        self._left: list[Raw] = []
        self._batch: Raw = (torch.empty(0), {})

    def _advance(self, step: int, batch_size: int) -> None:
        """Reads up to the batch of a step, from the beginning if that is before the present one."""
        if step < self._step:
            self._restart()
        while self._step < step:
            self._batch = self._next_batch(batch_size)
            self._step += 1
            x, labels = self._batch
            self._digest = digest_of({"x": x, **{f"label {name}": values for name, values in labels.items()}}, self._digest)

    def _next_batch(self, count: int) -> Raw:
        while sum(len(x) for x, _ in self._left) < count:
            self._left.append(self._next_item())
            if not len(self._left[-1][0]):
                raise ShapeError("An item of the data has no rows: leave it out.")
        if len({(x.shape[1:], *sorted((name, values.shape[1:]) for name, values in labels.items())) for x, labels in self._left}) > 1:
            raise ShapeError("Items of the data differ in the shapes of points or labels, or in the names of labels: make them alike.")
        x = torch.cat([x for x, _ in self._left])
        labels = {name: torch.cat([labels[name] for _, labels in self._left]) for name in self._left[0][1]}
        self._left = [(x[count:], {name: values[count:] for name, values in labels.items()})] if len(x) > count else []
        return x[:count], {name: values[:count] for name, values in labels.items()}

    def _next_item(self) -> Raw:
        for _ in range(2):
            torch.default_generator.manual_seed(Noise(0, range(1)).child(f"epoch {self._epoch} item {self._count}").seed % 2**63)
            if self._iterator is None:
                self._iterator = iter(self.data)
            if (item := next(self._iterator, self)) is not self:
                self._count += 1
                return _check_item(item)
            self._iterator, self._epoch, self._count = None, self._epoch + 1, 0
        raise OptionError("The data ended and did not start again: give an iterable that can be iterated repeatedly, such as a DataLoader.")


def _is_pair(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], Tensor) and isinstance(item[1], Mapping)


def _check_item(item: Any) -> Raw:
    """Returns an item as points and labels; raises if it is neither a tensor nor a pair."""
    if isinstance(item, (tuple, list)) and len(item) == 1:  # the items of a TensorDataset
        item = item[0]
    x, labels = item if _is_pair(item) else (item, {})
    if not isinstance(x, Tensor):
        raise _unknown_form("An item of the data must be a tensor, or a pair of a tensor and labels by name", item)
    if not x.ndim:
        raise ShapeError("The data have points of shape (N, *), got a tensor of shape ().")
    for name, values in labels.items():
        if not isinstance(values, Tensor):
            raise _unknown_form(f"The labels {name!r} of the data must be a tensor", values)
        if values.shape[:1] != x.shape[:1]:
            raise ShapeError(f"There are {len(x)} points and labels {name!r} of shape {tuple(values.shape)}; give one for each point.")
    return x, labels


def _unknown_form(rule: str, data: Any) -> OptionError:
    """Returns an error with the way to convert the data, where there is one."""
    ways = {
        "__array__": "convert arrays by `torch.as_tensor(...)`",
        "casefold": "open pictures by `open_pictures` of composable_energy_image.data",
        "append": "stack numbers by `torch.tensor(...)`",
        "__getitem__": "give `DataLoader(dataset, batch_size=...)`",
    }
    way = next((f"; {way}" for name, way in ways.items() if hasattr(data, name)), "")
    return OptionError(f"{rule}, got {type(data).__name__}{way}.")

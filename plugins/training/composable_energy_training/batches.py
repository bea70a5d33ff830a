"""Data by steps: which rows a step sees is a function of (seed, step) alone, so that a run can be taken up anywhere.

Data that can be had by index are dealt in an order of their own in each epoch; a batch may end one epoch and begin the next. Data that can
only be walked through are walked through by every process, which takes its own rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.files import digest_of
from composable_energy.noise import Noise
from composable_energy_training.fingerprints import Fingerprint, fingerprint_of
from composable_energy_training.objective import Batch

__all__ = ["Batches", "Rows", "parts_of", "rows_of"]

Raw = tuple[Tensor, Mapping[str, Tensor]]


class Rows(ABC):
    """Where the rows of a step come from.

    Attributes:
        advice: What to do where the data are others than before, for an error.
    """

    advice: str

    @abstractmethod
    def at(self, seed: int, step: int, batch_size: int, own: range) -> Raw:
        """Returns points and labels of this process's rows of a step.

        Args:
            seed: Of the order.
            step: From 1 on.
            batch_size: Rows of all processes together.
            own: The rows of this one.
        """

    @abstractmethod
    def told(self) -> dict[str, Any]:
        """Returns what must be the same for a run to go on, as plain data."""

    @abstractmethod
    def fingerprint(self, step: int, batch_size: int) -> Fingerprint:
        """Returns what the data are by value, up to a step.

        Args:
            step: The steps that were made.
            batch_size: Rows of all processes together.
        """


class Batches:
    """Batches that are ready for a model.

    Args:
        rows: Where they come from.
        batch_size: Rows of all processes together.
        own: The rows of this one.
        preparation: What is done to points: a function of (points, noise); None for nothing.
        device: Of the batches.
        dtype: Of the points.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        own: range,
        preparation: Callable[[Tensor, Noise], Tensor] | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.rows, self.batch_size, self.own = rows, batch_size, own
        self.preparation, self.device, self.dtype = preparation, device, dtype

    def at(self, seed: int, step: int) -> Batch:
        """Returns this process's rows of a step.

        Raises:
            DtypeError: The points are integers.
            ShapeError: Points and labels are not equally many.
        """
        x, labels = self.rows.at(seed, step, self.batch_size, self.own)
        noise = Noise(seed, self.own, step)
        x = x.to(self.device)
        if self.preparation is not None:
            x = self.preparation(x, noise.child("data"))
        if not x.is_floating_point():
            raise DtypeError(
                f"Training needs points with fractions, the data have {x.dtype}: give `x.float() / 255`, "
                "`Pictures` of composable_energy_image.data or a `preparation` that turns them."
            )
        known = {name: values.to(self.device, self.dtype if values.is_floating_point() else torch.int64) for name, values in labels.items()}
        return Batch(x.to(self.dtype), known, noise.child("objective"))


def parts_of(batch: Batch, count: int) -> Iterator[Batch]:
    """Yields a batch in parts of equally many rows, in order."""
    size = len(batch.x) // count
    for begin in range(0, len(batch.x), size):
        some = slice(begin, begin + size)
        labels = {name: values[some] for name, values in batch.labels.items()}
        yield Batch(batch.x[some], labels, batch.noise.for_chains(batch.noise.chains[some]))


def rows_of(data: Any) -> Rows:
    """Returns the rows of what people call data.

    Args:
        data: An object with a length, `images(index)` and `labels`, such as `Pictures` of the image package; points with shape $(N, *)$; a
            pair of them and labels by name; or an iterable of batches of either kind, which begins anew when it ends.

    Raises:
        OptionError: It is none of these, or empty.
        ShapeError: Points and labels are not equally many.
    """
    if hasattr(data, "images") and hasattr(data, "labels"):
        return _Indexed(len(data), data.images, {name: some.values for name, some in data.labels.items()}, False)
    if isinstance(data, Tensor) or _is_pair(data):
        x, labels = _raw(data)
        return _Indexed(len(x), lambda index: x[index.to(x.device)], labels, x.is_floating_point())
    if isinstance(data, Iterable):
        return _Walked(data)
    raise OptionError(
        f"Training takes Pictures, a tensor, a pair of a tensor and labels by name, or an iterable of these, got {type(data).__name__}."
    )


class _Indexed(Rows):
    advice = "a value of it has changed. Restore the data, give another folder, or delete this one to begin anew."

    def __init__(self, count: int, points: Callable[[Tensor], Tensor], labels: Mapping[str, Tensor], computed: bool) -> None:
        if not count:
            raise OptionError("There are no data to train on.")
        self.count, self.points, self.labels, self.computed = count, points, dict(labels), computed
        self._orders: dict[tuple[int, int], Tensor] = {}
        self._fingerprint: Fingerprint | None = None

    def at(self, seed: int, step: int, batch_size: int, own: range) -> Raw:
        first = (step - 1) * batch_size
        index = self._index(seed, first + own.start, first + own.stop)
        return self.points(index), {name: values[index.to(values.device)] for name, values in self.labels.items()}

    def told(self) -> dict[str, Any]:
        return {"rows": self.count, "labels": sorted(self.labels)}

    def fingerprint(self, step: int, batch_size: int) -> Fingerprint:
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self.count, self.points, self.labels, computed=self.computed)
        return self._fingerprint

    def _index(self, seed: int, start: int, stop: int) -> Tensor:
        """Which rows stand at some places of all epochs one after another."""
        parts = []
        while start < stop:
            epoch, place = divmod(start, self.count)
            parts.append(self._order(seed, epoch)[place : place + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)

    def _order(self, seed: int, epoch: int) -> Tensor:
        if (seed, epoch) not in self._orders:
            key = Noise(seed, range(1)).child(f"epoch {epoch}").seed
            order = torch.randperm(self.count, generator=torch.Generator().manual_seed(key % 2**63))
            kept = list(self._orders.items())[-1:]  # a batch may lie in two
            self._orders = {**dict(kept), (seed, epoch): order}
        return self._orders[seed, epoch]


class _Walked(Rows):
    """Its order is its own: another seed of the run does not change it.

    Each item is asked for under a seed of torch's that depends on the epoch and the item's number alone. So a `DataLoader` shuffles and
    augments alike whenever it is walked through, if it draws from torch's global generator or in workers of its own. The fingerprint is
    of all batches up to a step.
    """

    advice = (
        "its batches up to this step come out otherwise now. Either its values have changed, or its items are drawn at random from a "
        "generator that training does not seed, such as NumPy's or `random`. Draw from torch's global generator, or key the draws by "
        "epoch and index; to begin anew give another folder, or delete this one."
    )

    def __init__(self, data: Iterable[Any]) -> None:
        self.data = data
        self._iterator: Iterator[Any] | None = None
        self._epoch = 0
        self._begin()

    def at(self, seed: int, step: int, batch_size: int, own: range) -> Raw:
        self._walk(step, batch_size)
        x, labels = self._last
        some = slice(own.start, own.stop)
        return x[some], {name: values[some] for name, values in labels.items()}

    def told(self) -> dict[str, Any]:
        return {"rows": "an iterable"}

    def fingerprint(self, step: int, batch_size: int) -> Fingerprint:
        self._walk(max(1, step), batch_size)
        return Fingerprint(self._digest)

    def _walk(self, step: int, batch_size: int) -> None:
        if step < self._step:
            self._begin()
        while self._step < step:
            self._last = self._next(batch_size)
            self._step += 1
            x, labels = self._last
            self._digest = digest_of({"x": x, **{f"label {name}": values for name, values in labels.items()}}, self._digest)

    def _begin(self) -> None:
        self._iterator, self._epoch, self._count, self._step, self._digest = None, 0, 0, 0, ""
        self._left: list[Raw] = []
        self._last: Raw = (torch.empty(0), {})

    def _next(self, count: int) -> Raw:
        while sum(len(x) for x, _ in self._left) < count:
            self._left.append(self._item())
        x = torch.cat([x for x, _ in self._left])
        names = self._left[0][1].keys()
        labels = {name: torch.cat([labels[name] for _, labels in self._left]) for name in names}
        self._left = [(x[count:], {name: values[count:] for name, values in labels.items()})] if len(x) > count else []
        return x[:count], {name: values[:count] for name, values in labels.items()}

    def _item(self) -> Raw:
        for _ in range(2):
            key = Noise(0, range(1)).child(f"epoch {self._epoch} item {self._count}").seed
            torch.default_generator.manual_seed(key % 2**63)
            if self._iterator is None:
                self._iterator = iter(self.data)
            item = next(self._iterator, None)
            if item is not None:
                self._count += 1
                return _raw(item)
            self._iterator, self._epoch, self._count = None, self._epoch + 1, 0
        raise OptionError("The data ended and did not begin anew: give an iterable that can be walked through again, such as a DataLoader.")


def _is_pair(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], Tensor) and isinstance(item[1], Mapping)


def _raw(item: Any) -> Raw:
    if isinstance(item, (tuple, list)) and len(item) == 1:  # as a TensorDataset gives them
        item = item[0]
    x, labels = item if _is_pair(item) else (item, {})
    if not isinstance(x, Tensor):
        raise OptionError(f"An item of the data is a tensor, or a pair of a tensor and labels by name, got {type(item).__name__}.")
    for name, values in labels.items():
        if len(values) != len(x):
            raise ShapeError(f"There are {len(x)} points and {len(values)} labels {name!r}; give one for each.")
    return x, labels

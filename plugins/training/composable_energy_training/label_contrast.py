r"""Contrast of labels: the energy of a point with its own class is to be below that with each of a set of other classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy_training.objective import Batch, Loss, Objective, RankContext, as_float32, get_conditions, require_energy


class LabelContrast(Objective):
    r"""Cross entropy of $p(y \mid x) \propto e^{-E(x, y)}$ among a set $S$ of classes (Li et al., 2020):

    $$\Bigl\langle E(x, y) + \log \sum_{y' \in S} e^{-E(x, y')} \Bigr\rangle + \alpha \langle E(x, y)^2 \rangle$$

    A softmax layer raises the energies of all its classes on each point. Here $S$ may be the classes of the present task: energies of other
    classes change only through shared weights, so that a network that learns classes one after the other, without earlier data, forgets
    less. With all classes as $S$ it is the usual cross entropy. It trains a classifier, not a density of points; add an objective such as
    `ContrastiveDivergence` for that.

    Args:
        condition: The attribute of the data with the class; it becomes the condition `y` of the energy.
        classes: $S$, class numbers that contain all labels of the data; None for the classes that occur in the batch, which needs no
            knowledge of tasks.
        l2: $\alpha$.

    Raises:
        OptionError: A class is no whole number of at least 0, fewer than two classes are given, or `l2` is negative.

    References:
        Energy-based models for continual learning (Li et al., 2020), https://arxiv.org/abs/2011.12216
    """

    def __init__(self, condition: str, *, classes: Sequence[int] | None = None, l2: float = 0.0) -> None:
        self.condition, self.l2 = condition, check_number("l2", l2, least=0)
        self.classes = None if classes is None else tuple(sorted({check_integer("classes", value, least=0) for value in classes}))
        if self.classes is not None and len(self.classes) < 2:
            raise OptionError(f"A contrast needs at least two classes, got {list(self.classes)}.")

    def begin(self, model: nn.Module, context: RankContext) -> None:
        if self.classes is None and len(context.rows) < context.batch_size:
            raise OptionError("In several processes the classes of a batch differ between processes: give `classes`.")

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        r"""Returns the loss. Its scalars are `accuracy`, the share of rows whose own class has the lowest energy of $S$, `margin`, the mean
        of the other classes' energies minus the own, and `magnitude`, the mean absolute energy.
        """
        labels = get_conditions(require_energy(model), batch, self.condition)["y"]
        if labels.is_floating_point():
            raise OptionError(f"A contrast of labels needs classes, {self.condition} has numbers.")
        classes = labels.unique() if self.classes is None else torch.tensor(self.classes, device=labels.device)
        place = self._places(labels, classes)
        count = len(classes)
        energies = as_float32(model(batch.x.repeat_interleave(count, 0), y=classes.repeat(len(labels)))).view(len(labels), count)
        own = energies.gather(1, place[:, None])[:, 0]
        value = (own + (-energies).logsumexp(1)).mean()
        if self.l2:
            value = value + self.l2 * own.square().mean()
        found, low = energies.detach(), own.detach()
        scalars = {
            "accuracy": (found.argmin(1) == place).to(found).mean(),
            "margin": ((found.sum(1) - low) / max(count - 1, 1) - low).mean(),
            "magnitude": found.abs().mean(),
        }
        return Loss(value, scalars)

    def _places(self, labels: Tensor, classes: Tensor) -> Tensor:
        place = torch.searchsorted(classes, labels).clamp_max(len(classes) - 1)
        wrong = labels[classes[place] != labels]
        if len(wrong):
            raise OptionError(f"{self.condition} has the class {int(wrong[0])}, but classes are {classes.tolist()}: add it.")
        return place

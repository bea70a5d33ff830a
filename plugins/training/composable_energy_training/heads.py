r"""Objectives that learn attributes: heads at all noise levels, which become evidence in expressions, and classifiers that are energies."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Noise, SamplerLike
from composable_energy_training.contrastive_divergence import ContrastiveDivergence
from composable_energy_training.objective import Batch, Loss, Objective, RankContext, as_float32, get_conditions, get_labels, require_energy
from composable_energy_training.replay_buffer import Start
from composable_energy_training.score_matching import add_noise, check_levels

_LOG_WIDTHS = (-5.0, 1.0)  # the range of composable_energy.GaussianHead


class AttributeHeads(Objective):
    r"""Cross entropy of classes, in nats for each row and summed over the variables, at noisy points $x + \sigma \xi$ with $\log \sigma$
    uniform between two levels. A head at level $\sigma$ learns the posterior of an attribute given the noisy point.

    The model is called with points and levels, `model(x, sigma)`, and returns logits with shape $(B, C)$: one column
    for a variable with two values, the logit of value 1, and $K$ columns for one with $K$ values, in the order of `variables`. Rows with
    the label -1, unknown, add nothing.

    Args:
        variables: The number of values of each attribute, at least two, by its name in the data.
        sigma_min: The lowest level, in units of the points.
        sigma_max: The highest level.

    Raises:
        OptionError: There is no variable, one has fewer than two values, or the levels are not positive and in order.
    """

    def __init__(self, variables: Mapping[str, int], sigma_min: float, sigma_max: float) -> None:
        if not variables:
            raise OptionError("Attribute heads need at least one variable, such as {'smiling': 2}.")
        self.variables = {name: check_integer(f"The number of values of {name}", values, least=2) for name, values in variables.items()}
        self.levels = check_levels(sigma_min, sigma_max)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss. Its scalars are `cross_entropy`, the loss itself, and `accuracy`, the share of known labels predicted."""
        x, sigma, _ = add_noise(batch.x, self.levels, batch.noise)
        logits, widths = as_float32(model(x, sigma)), [1 if values == 2 else values for values in self.variables.values()]
        if logits.shape != (len(x), sum(widths)):
            variables = ", ".join(f"{name} ({values})" for name, values in self.variables.items())
            raise ShapeError(f"{variables} need logits of shape {(len(x), sum(widths))}, one for two values; got {tuple(logits.shape)}.")
        total, correct, known = logits.new_zeros(()), logits.new_zeros(()), logits.new_zeros(())
        for name, columns in zip(self.variables, logits.split(widths, 1), strict=True):
            both = columns if columns.shape[1] > 1 else F.pad(columns, (1, 0))  # logits 0 and l have the odds of one logit l
            loss, hits, labels = cross_entropy(both, get_labels(batch, name), name)
            total, correct, known = total + loss, correct + hits, known + labels
        value = total / len(x)
        return Loss(value, {"cross_entropy": value.detach(), "accuracy": correct / known.clamp_min(1)})


class ValueHeads(Objective):
    r"""Negative log likelihood of numbers, in nats for each row up to a constant, at noisy points $x + \sigma \xi$ with $\log \sigma$
    uniform between two levels: $\sum_a \tfrac12 (v_a - f_a)^2 / w_a^2 + \log w_a$.

    A head at level $\sigma$ learns the Gaussian that is closest to the posterior of the numbers given the noisy point;
    `composable_energy.GaussianHead` converts it to energies. The model is called with points and levels, `model(x, sigma)`. It returns
    means $f$, then log widths $\log w$, clamped to $[-5, 1]$, with shape $(B, 2 \cdot \text{dims})$. Rows with a NaN add nothing.

    Args:
        name: The name of the numbers in the data; they have shape $(B,)$ or $(B, \text{dims})$.
        dims: The number of numbers for each row.
        sigma_min: The lowest level, in units of the points.
        sigma_max: The highest level.

    Raises:
        OptionError: The levels are not positive and in order, or `dims` is below 1.

    References:
        Estimating the mean and variance of the target probability distribution (Nix & Weigend, 1994).
    """

    def __init__(self, name: str, dims: int, sigma_min: float, sigma_max: float) -> None:
        self.name, self.dims, self.levels = name, check_integer("dims", dims, least=1), check_levels(sigma_min, sigma_max)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss. Its scalars are `likelihood`, the loss itself, and `error`, the root mean square of $v - f$."""
        x, sigma, _ = add_noise(batch.x, self.levels, batch.noise)
        values, predictions = as_float32(get_labels(batch, self.name)), as_float32(model(x, sigma))
        values = values[:, None] if values.ndim == 1 else values
        for subject, tensor, columns in ((f"{self.name} has", values, self.dims), ("The model returned", predictions, 2 * self.dims)):
            if tensor.shape != (len(x), columns):
                raise ShapeError(f"{subject} shape {tuple(tensor.shape)}; expected {(len(x), columns)} for {self.dims} numbers each.")
        known = values.isfinite().all(1, keepdim=True)
        error = (values - predictions[:, : self.dims]).masked_fill(~known, 0.0)
        log_widths = predictions[:, self.dims :].clamp(*_LOG_WIDTHS) * known
        value = ((error * (-log_widths).exp()).square() / 2 + log_widths).sum() / len(error)
        squared = error.detach().square().sum() / (known.sum() * self.dims).clamp_min(1)
        return Loss(value, {"likelihood": value.detach(), "error": squared.sqrt()})


def cross_entropy(logits: Tensor, labels: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the cross entropy summed over rows with known labels, the number of correct predictions, and the number of known labels.

    Labels are values from 0; -1 where unknown. The name of the attribute is for errors.
    """
    values = logits.shape[1]
    if labels.is_floating_point() or labels.ndim != 1:
        raise OptionError(f"{name} must be classes, whole numbers with shape (B,), got shape {tuple(labels.shape)} of {labels.dtype}.")
    if bool(((labels < -1) | (labels >= values)).any()):
        raise OptionError(f"{name} has values from 0 to {values - 1}, or -1 where unknown; got {int(labels.min())} to {int(labels.max())}.")
    hits = (logits.detach().argmax(1) == labels).sum()
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum"), hits, (labels >= 0).sum()


class JointEnergyClassifier(ContrastiveDivergence):
    r"""Contrastive divergence of an energy plus the cross entropy of a classifier (Grathwohl et al., 2020):

    $$\langle E(x) - E(x') \rangle + \alpha \langle E(x)^2 + E(x')^2 \rangle - \beta \langle \log p(y \mid x) \rangle$$

    The model has a method `logits(x)` with shape $(B, K)$, and $p(y \mid x) = \text{softmax}(\text{logits})_y$. In the paper the energy is
    $E(x) = -\log \sum_y e^{\text{logits}_y}$ of the same network, called without a class. Rows with the label -1, unknown, add to the
    divergence only. All other arguments are those of `ContrastiveDivergence`.

    Args:
        steps: Steps of each chain for each training step; 20 in the paper.
        l2: $\alpha$; 0 in the paper.
        label: The attribute of the data with the class.
        weight: $\beta$; 1 in the paper.

    References:
        Your classifier is secretly an energy based model and you should treat it like one (Grathwohl et al., 2020),
        https://arxiv.org/abs/1912.03263
    """

    def __init__(
        self,
        *,
        steps: int,
        sampler: SamplerLike = "langevin",
        options: Mapping[str, Any] | None = None,
        buffer: int = 10_000,
        fresh: float = 0.05,
        start: Start | Literal["data"] = "uniform",
        l2: float = 0.0,
        augment: Callable[[Tensor, Noise], Tensor] | None = None,
        persistent: bool = True,
        label: str = "class",
        weight: float = 1.0,
    ) -> None:
        chains = {"buffer": buffer, "fresh": fresh, "start": start, "augment": augment, "persistent": persistent}
        super().__init__(steps=steps, sampler=sampler, options=options, l2=l2, **chains)
        self.label, self.weight = label, check_number("weight", weight, least=0)

    def begin(self, model: nn.Module, context: RankContext) -> None:
        if not callable(getattr(model, "logits", None)):
            raise OptionError(f"The model needs a method `logits(x)` with shape (B, K); {type(model).__name__} has none.")
        super().begin(model, context)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss. Its scalars: those of `ContrastiveDivergence`, the mean `cross_entropy`, and the `accuracy` on known labels."""
        labels, divergence = get_labels(batch, self.label), super().loss(model, batch)
        logits = model.logits(batch.x)  # pyright: ignore[reportCallIssue]
        if logits.ndim != 2 or len(logits) != len(batch.x):
            raise ShapeError(f"logits must have shape ({len(batch.x)}, K), got {tuple(logits.shape)}.")
        total, correct, known = cross_entropy(as_float32(logits), labels, self.label)
        mean = total / len(labels)
        scalars = {"cross_entropy": mean.detach(), "accuracy": correct / known.clamp_min(1)}
        return Loss(divergence.value + self.weight * mean, {**divergence.scalars, **scalars})


class LabelContrast(Objective):
    r"""Cross entropy of $p(y \mid x) \propto e^{-E(x, y)}$ among a set $S$ of classes (Li et al., 2020):

    $$\Bigl\langle E(x, y) + \log \sum_{y' \in S} e^{-E(x, y')} \Bigr\rangle + \alpha \langle E(x, y)^2 \rangle$$

    A softmax layer raises the energies of all its classes on each point. Here $S$ may be the classes of the present task: energies of other
    classes change only through shared weights, so a network that learns classes in turn, without earlier data, forgets less. With all
    classes as $S$ it is the usual cross entropy. It trains a classifier; add an objective such as `ContrastiveDivergence` for a density.

    Args:
        condition: The attribute of the data with the class; it becomes the condition `y` of the energy.
        classes: $S$, class numbers that contain all labels of the data; None for the classes in the batch, without knowledge of tasks.
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
        if (labels := get_conditions(require_energy(model), batch, self.condition)["y"]).is_floating_point() or labels.ndim != 1:
            got = f"{self.condition} has shape {tuple(labels.shape)} of {labels.dtype}"
            raise OptionError(f"A contrast of labels needs classes, whole numbers with shape (B,); {got}.")
        classes = labels.unique() if self.classes is None else torch.tensor(self.classes, device=labels.device)
        count = len(classes)
        place = torch.searchsorted(classes, labels).clamp_max(count - 1)
        wrong = labels[classes[place] != labels]
        if len(wrong):
            raise OptionError(f"{self.condition} has the class {int(wrong[0])}, but classes are {classes.tolist()}: add it.")
        energies = as_float32(model(batch.x.repeat_interleave(count, 0), y=classes.repeat(len(labels)))).view(len(labels), count)
        own = energies.gather(1, place[:, None])[:, 0]
        value = (own + (-energies).logsumexp(1)).mean()
        if self.l2:
            value = value + self.l2 * own.square().mean()
        found, low = energies.detach(), own.detach()
        accuracy, margin = (found.argmin(1) == place).to(found).mean(), ((found.sum(1) - low) / max(count - 1, 1) - low).mean()
        return Loss(value, {"accuracy": accuracy, "margin": margin, "magnitude": found.abs().mean()})

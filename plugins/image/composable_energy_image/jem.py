r"""JEM: a classifier as an energy (Grathwohl et al., 2020), https://arxiv.org/abs/1912.03263.

A wide residual network has logits $f_y(x)$, and defines $p(x, y) \propto e^{f_y(x)}$. The energy is $E(x) = -\log \sum_y e^{f_y(x)}$, and
$p(y \mid x)$ is the softmax. So the events `jem.of(3)`, and all logic over them, are exact.
"""

from collections.abc import Iterable

from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy_image.energy import Activation, activation_of, recommend_langevin


class JEM(ce.Energy):
    r"""A classifier as an energy of images of any label, $-\log \sum_y e^{f_y(x)}$ (JEM).

    The paper samples with steps $x' = x - \nabla E + .01\, \xi$ of images in [-1, 1]; for images in [0, 1] the factors are .25 and .005.

    Args:
        labels: Number of labels $K$.
        depth: Number of layers, 4 more than a multiple of 6.
        width: Factor of the channels 16, 32 and 64.
        activation: `leaky-relu`, `relu` or `swish`.
        dropout: Fraction of features that a block drops in training.

    Raises:
        OptionError: An option is out of range.

    Example:
        >>> import torch, composable_energy as ce
        >>> jem = ce.get("energy", "jem", size=8, labels=3, depth=10, width=1).eval()
        >>> (jem.of(0) | ~jem.of(0)).evidence(torch.rand(2, 3, 8, 8)).abs() < 1e-6
        tensor([True, True])
    """

    comes_trained = False

    def __init__(
        self,
        *,
        size: int = 32,
        channels: int = 3,
        labels: int = 10,
        depth: int = 28,
        width: int = 10,
        activation: Activation = "leaky-relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.name = "jem"
        self.labels = check_integer("labels", labels, 2)
        self.event_shape = (check_integer("channels", channels), check_integer("size", size), size)
        self.recommended = recommend_langevin(0.25, 0.005, clamp=None)
        net = WideResNet(channels=channels, labels=labels, depth=depth, width=width, activation=activation, dropout=dropout)
        self.net = ce.shared(net)  # the energy and all events over it evaluate it once

    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x).logsumexp(1)

    def logits(self, x: Tensor) -> Tensor:
        """Returns $f(x)$, with shape $(B, K)$."""
        return self.net(x)

    def of(self, label: int | Iterable[int] | None = None) -> ce.Energy:
        r"""Returns the energy of images with a label, $E(x) - \log p(y \mid x) = -f_y(x)$, as an event over this energy.

        Args:
            label: A label, or several. With None the label is the condition `y`, bound by `given(y=3)`.

        Raises:
            OptionError: A label is not a whole number, or out of range.
        """
        labelled = ce.ClassifierEnergy(self.net, None, self, labels=self.labels, name=self.name)
        return labelled if label is None else labelled.given(y=label)


class WideResNet(nn.Module):
    """The logits of a wide residual network without normalization (Zagoruyko & Komodakis, 2016), https://arxiv.org/abs/1605.07146."""

    def __init__(self, *, channels: int, labels: int, depth: int, width: int, activation: str, dropout: float) -> None:
        super().__init__()
        if check_integer("depth", depth) < 10 or (depth - 4) % 6:
            raise OptionError(f"depth must be 10, 16, 22, 28 or another number that is 4 more than a multiple of 6, got {depth}.")
        w = 16 * check_integer("width", width)
        self.activation = activation_of(activation)
        self.read = nn.Conv2d(channels, 16, 3, padding=1)
        blocks, inputs = [], 16
        for outputs, stride in ((w, 1), (2 * w, 2), (4 * w, 2)):
            for i in range((depth - 4) // 6):
                blocks.append(_Wide(inputs, outputs, stride if i == 0 else 1, activation, dropout))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, labels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits with shape $(B, K)$ of images in [0, 1]; the network reads $2 x - 1$."""
        return self.head(self.activation(self.blocks(self.read(2 * x - 1))).mean((2, 3)))


class _Wide(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.activation = activation_of(activation)
        self.dropout = nn.Dropout(check_number("dropout", dropout, least=0, below=1))
        self.inner = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.outer = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1)
        self.skip = nn.Identity() if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, h: Tensor) -> Tensor:
        return self.skip(h) + self.outer(self.activation(self.dropout(self.inner(self.activation(h)))))

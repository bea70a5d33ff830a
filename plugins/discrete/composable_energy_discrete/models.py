"""Energies of discrete points: Ising and Potts lattices, the restricted Boltzmann machine, and models of masked tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from composable_energy import Energy
from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_flag, check_integer
from composable_energy_discrete.neighbours import LocalEnergy


class _Lattice(LocalEnergy):
    """Abstract energy of a lattice whose sites interact with their nearest neighbours, all with the same coupling."""

    coupling: Tensor
    field: Tensor

    def __init__(self, shape: int | Sequence[int], coupling: float, field: Any, periodic: bool, *states: int) -> None:
        super().__init__()
        self.shape = tuple(check_integer("shape", size) for size in ((shape,) if isinstance(shape, int) else shape))
        self.periodic = check_flag("periodic", periodic)
        for name, given, event in (("coupling", coupling, ()), ("field", field, (*self.shape, *states))):
            try:
                found = torch.as_tensor(given)
                found.expand(event)
            except (TypeError, ValueError, RuntimeError) as error:
                wanted = f"numbers that fit the shape {event}" if event else "a number"
                raise ShapeError(f"{name} must be {wanted}, got {given!r:.200}.") from error
            if found.is_complex() or not bool(found.isfinite().all()):
                raise OptionError(f"{name} must have finite, real numbers, got {given!r:.200}.", [name])
            self.register_buffer(name, found.to(torch.get_default_dtype(), copy=True))

    def config(self) -> dict[str, Any]:
        return {"shape": self.shape, "coupling": self.coupling, "field": self.field, "periodic": self.periodic}

    def around(self, values: Tensor) -> Tensor:
        """Returns the sums of the values of the neighbours of each site, of values with shape $(B, *)$ that may have further axes."""
        total = torch.zeros_like(values)
        for axis, size in enumerate(self.shape, start=1):
            ahead, behind = (torch.roll(values, step, axis) for step in (1, -1))
            if not self.periodic and size > 1:
                ahead.narrow(axis, 0, 1).zero_()
                behind.narrow(axis, size - 1, 1).zero_()
            if size > 1:
                total = total + (ahead if self.periodic and size == 2 else ahead + behind)
        return total

    def couplings(self) -> Tensor:
        number = torch.arange(math.prod(self.shape)).view(self.shape)
        pairs = [torch.empty((2, 0), dtype=torch.int64)]
        for axis, size in enumerate(self.shape):
            ahead = torch.roll(number, -1, axis)
            keep = size if self.periodic and size > 2 else size - 1
            pairs.append(torch.stack([some.narrow(axis, 0, keep).flatten() for some in (number, ahead)]))
        return torch.cat(pairs, 1)


class Ising(_Lattice):
    r"""The Ising model on a lattice, of numbers that are 0 or 1.

    $E(x) = -J \sum_{\langle i j \rangle} s_i s_j - \sum_i h_i s_i$ with spins $s = 2 x - 1$ and all pairs of neighbours. On a
    square lattice it is critical at $J = \ln(1 + \sqrt 2) / 2 \approx .4407$.

    Args:
        shape: The shape of the lattice, which is that of a point.
        coupling: $J$, of each pair of neighbours.
        field: $h$, a number or one for each site.
        periodic: Whether the ends of each axis are neighbours.

    Example:
        >>> spins = Ising((24, 24), coupling=0.3).sample(10, seed=0)
        >>> spins.shape
        torch.Size([10, 24, 24])
    """

    def __init__(self, shape: int | Sequence[int], coupling: float = 0.4407, field: Any = 0.0, periodic: bool = True) -> None:
        super().__init__(shape, coupling, field, periodic)
        self.event_shape, self.support = self.shape, constraints.boolean

    def forward(self, x: Tensor) -> Tensor:
        spins = 2 * x - 1
        return -(spins * (self.coupling / 2 * self.around(spins) + self.field)).flatten(1).sum(1)

    def differences(self, x: Tensor) -> Tensor:
        return -2 * (self.coupling * self.around(2 * x - 1) + self.field).flatten(1)[..., None]

    def quadratic(self) -> tuple[Tensor, Tensor]:
        neighbours = self.around(torch.ones_like(self.field).expand(1, *self.shape))
        return (4 * self.coupling).expand(self.couplings().shape[1]), 2 * (self.field - self.coupling * neighbours).flatten()


class Potts(_Lattice):
    r"""The Potts model on a lattice, of one-hot rows.

    $E(x) = -J \sum_{\langle i j \rangle} x_i \cdot x_j - \sum_i h \cdot x_i$ with all pairs of neighbours. On a square
    lattice of $q$ states it is critical at $J = \ln(1 + \sqrt q)$.

    Args:
        shape: The shape of the lattice; a point has one more axis, of the states.
        states: $q$.
        coupling: $J$, of each pair of neighbours in the same state.
        field: $h$, a number for each state.
        periodic: Whether the ends of each axis are neighbours.

    Example:
        >>> Potts((8, 8), states=3, coupling=0.5).sample(10, seed=0).argmax(-1).shape
        torch.Size([10, 8, 8])
    """

    def __init__(self, shape: int | Sequence[int], states: int, coupling: float = 1.0, field: Any = 0.0, periodic: bool = True) -> None:
        states = check_integer("states", states, 2)
        super().__init__(shape, coupling, field, periodic, states)
        self.states, self.event_shape, self.support = states, (*self.shape, states), constraints.one_hot

    def config(self) -> dict[str, Any]:
        return {**super().config(), "states": self.states}

    def forward(self, x: Tensor) -> Tensor:
        return -(x * (self.coupling / 2 * self.around(x) + self.field)).flatten(1).sum(1)

    def differences(self, x: Tensor) -> Tensor:
        force = (self.coupling * self.around(x) + self.field).flatten(1, -2)
        return force[..., :1] - force[..., 1:]


class BoltzmannMachine(Energy):
    r"""The restricted Boltzmann machine of numbers that are 0 or 1.

    Its hidden numbers are summed out: $E(v) = -b \cdot v - \sum_j \log(1 + e^{c_j + (v W)_j})$. `joint()` is the machine of visible and
    hidden numbers, whose two halves `Gibbs` draws in turn.

    Args:
        visible: How many visible numbers there are.
        hidden: How many hidden ones.

    References:
        Training products of experts by minimizing contrastive divergence (Hinton, 2002), https://doi.org/10.1162/089976602760128018
    """

    def __init__(self, visible: int, hidden: int) -> None:
        super().__init__()
        self.visible, self.hidden = check_integer("visible", visible), check_integer("hidden", hidden)
        self.weight = nn.Parameter(0.01 * torch.randn(visible, hidden, generator=torch.Generator().manual_seed(0)))
        self.visible_bias, self.hidden_bias = nn.Parameter(torch.zeros(visible)), nn.Parameter(torch.zeros(hidden))
        self.event_shape, self.support = (visible,), constraints.boolean

    def config(self) -> dict[str, Any]:
        return {"visible": self.visible, "hidden": self.hidden}

    def forward(self, x: Tensor) -> Tensor:
        return -(x @ self.visible_bias) - F.softplus(self.hidden_bias + x @ self.weight).sum(1)

    def joint(self) -> JointBoltzmannMachine:
        """Returns the machine of points $(v, h)$, with the same parameters."""
        return JointBoltzmannMachine(self)


class JointBoltzmannMachine(LocalEnergy):
    r"""The energy $-b \cdot v - c \cdot h - v W h$ of visible and hidden numbers, one after another in a point.

    Args:
        machine: The machine, whose parameters it shares.
    """

    def __init__(self, machine: BoltzmannMachine) -> None:
        super().__init__()
        self.machine = machine
        self.event_shape, self.support = (machine.visible + machine.hidden,), constraints.boolean

    def config(self) -> dict[str, Any]:
        return {"machine": self.machine}

    def forward(self, x: Tensor) -> Tensor:
        visible, hidden = x.split([self.machine.visible, self.machine.hidden], 1)
        biases = visible @ self.machine.visible_bias + hidden @ self.machine.hidden_bias
        return -biases - ((visible @ self.machine.weight) * hidden).sum(1)

    def differences(self, x: Tensor) -> Tensor:
        machine = self.machine
        visible, hidden = x.split([machine.visible, machine.hidden], 1)
        force = torch.cat([machine.visible_bias + hidden @ machine.weight.T, machine.hidden_bias + visible @ machine.weight], 1)
        return -force[..., None]

    def couplings(self) -> Tensor:
        return torch.cartesian_prod(torch.arange(self.machine.visible), self.machine.visible + torch.arange(self.machine.hidden)).T


class MaskedTokens(Energy):
    r"""The energy of sequences by a network that predicts masked tokens: $E(x) = -\sum_i \log p(x_i \mid x_{-i})$.

    Points are one-hot rows. Each token is masked in turn, so that a point costs $L$ evaluations of the network. No density has all of its
    conditional distributions in general, and $E$ is a score of whole sequences, not the logarithm of one. Its gradient keeps each
    $p(\cdot \mid x_{-i})$ fixed: `gibbs-with-gradients` and `discrete-langevin` then propose the tokens that the network would.

    Args:
        network: Maps numbers of tokens, of int64 with shape $(B, L)$, to logits of all tokens with shape $(B, L, V)$. A module of another
            library is wrapped, such as by `ids -> model(ids).logits`.
        length: $L$.
        tokens: The numbers of the $K$ tokens that points consist of, in the order of the columns of a point, or $K$ for the first $K$.
        mask: The number of the token that stands for a masked one.

    Raises:
        OptionError: A number of a token is negative or occurs twice, or the mask is one of the tokens of points.
        ShapeError: At evaluation, the logits have another shape.

    Example:
        >>> network = nn.Sequential(nn.Embedding(5, 8), nn.Flatten(), nn.Linear(24, 15), nn.Unflatten(1, (3, 5)))
        >>> MaskedTokens(network.eval(), length=3, tokens=4, mask=4).sample(10, seed=0).shape
        torch.Size([10, 3, 4])

    References:
        Masked language model scoring (Salazar et al., 2020), https://arxiv.org/abs/1910.14659
        Exposing the implicit energy networks behind masked language models via Metropolis-Hastings (Goyal et al., 2022),
        https://arxiv.org/abs/2106.02736
    """

    tokens: Tensor

    def __init__(self, network: nn.Module, length: int, tokens: int | Sequence[int], mask: int) -> None:
        super().__init__()
        self.network, self.length, self.mask = network, check_integer("length", length), check_integer("mask", mask, 0)
        chosen = [check_integer("tokens", number, 0) for number in tokens] if isinstance(tokens, Sequence) else None
        numbers = torch.arange(check_integer("tokens", tokens, 2)) if chosen is None else torch.tensor(chosen)
        if len(numbers) < 2 or len(numbers.unique()) < len(numbers) or self.mask in numbers:
            raise OptionError(f"tokens are at least two different numbers, none of them the mask {mask}, got {tokens}.")
        self.most = int(numbers.max())
        self.register_buffer("tokens", numbers)
        self.event_shape, self.support = (self.length, len(numbers)), constraints.one_hot

    def config(self) -> dict[str, Any]:
        return {"network": self.network, "length": self.length, "tokens": self.tokens.tolist(), "mask": self.mask}

    def forward(self, x: Tensor) -> Tensor:
        ids, total = self.tokens[x.detach().argmax(2)], x.new_zeros(len(x))
        for place in range(self.length):
            logits = self.network(ids.index_fill(1, torch.tensor(place, device=x.device), self.mask))
            if logits.shape[:-1] != ids.shape or logits.shape[-1] <= self.most:
                wanted = f"({len(ids)}, {self.length}, more than {self.most})"
                raise ShapeError(f"The network of masked tokens returned {tuple(logits.shape)}, and logits of shape {wanted} are needed.")
            total = total - (x[:, place] * logits[:, place, self.tokens].to(x.dtype).log_softmax(-1)).sum(1)
        return total

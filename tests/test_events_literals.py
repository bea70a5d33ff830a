"""Yes-or-no heads of one network: together they have the values of each alone, and cost as many operations."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode

import composable_energy as ce
from composable_energy.errors import ShapeError
from composable_energy.sampling import energy_and_gradient

X = torch.linspace(-2, 2, 15, dtype=torch.float64).reshape(5, 3)


class Bowl(ce.Energy):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(1) / 2


class Counting(TorchDispatchMode):
    """Counts the operations that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def network(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, outputs)).double().requires_grad_(False)


def heads(net: Callable[[Tensor], Tensor], count: int, base: ce.Energy | None = None) -> list[ce.ClassifierEnergy]:
    base = Bowl() if base is None else base
    return [ce.ClassifierEnergy(net, 1, base, columns=column, name=f"h{column}") for column in range(count)]


def gradient(function, x: Tensor) -> Tensor:
    point = x.clone().requires_grad_()
    return torch.autograd.grad(function(point).sum(), point)[0]


def test_a_conjunction_of_heads_is_the_sum_of_their_log_odds():
    net, signs = network(9), torch.tensor([1, -1, 1, 1, -1, -1, 1, -1], dtype=torch.float64)
    events = heads(net, 8)
    whole = ce.all_of(*(event if sign > 0 else ~event for event, sign in zip(events, signs, strict=True)))

    def expected(x: Tensor) -> Tensor:
        return x.square().sum(1) / 2 - logsigmoid(net(x)[:, :8] * signs).sum(1)

    energies, grads = energy_and_gradient(whole, X)
    torch.testing.assert_close(energies, expected(X), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(grads, gradient(expected, X), rtol=1e-12, atol=1e-12)


def test_any_formula_of_heads_equals_enumeration():
    net = network(5)
    a, b, c, d = heads(net, 4)
    yes, no = net(X)[:, :4].sigmoid().T, net(X)[:, :4].neg().sigmoid().T
    formulas = {
        (a & b) | (~c & d): 1 - (1 - yes[0] * yes[1]) * (1 - no[2] * yes[3]),
        ~(a & b & c & d): 1 - yes.prod(0),
        a ^ b: yes[0] * no[1] + no[0] * yes[1],
        (a >> b) & ~d: (1 - yes[0] * no[1]) * no[3],
        a & (b | ~b): yes[0],
        ~a & ~b: no[0] * no[1],
    }
    for formula, probability in formulas.items():
        torch.testing.assert_close(formula.evidence(X), -probability.log(), rtol=1e-12, atol=1e-12)


def test_heads_of_other_kinds_stand_beside_them():
    net, base = network(9), Bowl()
    a, b, *_ = heads(net, 3, base)
    color = ce.ClassifierEnergy(net, 2, base, columns=slice(3, 7))
    each = ce.ClassifierEnergy(net, base=base, columns=7).given(y=torch.tensor([0, 1, 1, 0, 1]))
    last = ce.ClassifierEnergy(net, 1, base, columns=-1)
    logits = net(X)
    chosen = logits[:, 7] * torch.tensor([-1.0, 1.0, 1.0, -1.0, 1.0])
    parts = [logits[:, 0], -logits[:, 1], logits[:, 8], chosen]
    expected = -sum(map(logsigmoid, parts)) - logits[:, 3:7].log_softmax(1)[:, 2]
    torch.testing.assert_close((a & ~b & color & each & last).evidence(X), expected, rtol=1e-12, atol=1e-12)


def test_two_networks_are_two_groups():
    one, two, base = network(4), network(4), Bowl()
    with torch.no_grad():
        two[2].weight.mul_(-2.0)
    whole = ce.all_of(*heads(one, 4, base), *(~event for event in heads(two, 4, base)))
    expected = -logsigmoid(one(X)).sum(1) - logsigmoid(-two(X)).sum(1)
    torch.testing.assert_close(whole.evidence(X), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [1e4, 1e30])
def test_sure_heads_have_finite_values_and_gradients_in_single_precision(factor):
    net = network(4).float()
    a, b, c, d = heads(lambda x: factor * net(x), 4)
    energies, grads = energy_and_gradient((a & ~b) | (c & d), X.float())
    assert energies.isfinite().all() and grads.isfinite().all()
    energies, grads = energy_and_gradient(a & ~b & c & ~d, X.float())
    assert energies.isfinite().all() and grads.isfinite().all()


def test_more_heads_take_no_more_operations():
    net, counts = network(20), []
    for count in (4, 8, 16):
        events = heads(net, count)
        whole = ce.all_of(*events[::2], *(~event for event in events[1::2])).eval()
        energy_and_gradient(whole, X)
        with Counting() as operations:
            energy_and_gradient(whole, X)
        counts.append(operations.count)
    assert counts == sorted(counts, reverse=True)  # a column that no head reads gets a gradient of zeros


def test_a_column_that_the_network_lacks_is_an_error():
    events = heads(network(2), 3)
    with pytest.raises(ShapeError, match="no columns"):
        (events[0] & events[1] & events[2])(X)

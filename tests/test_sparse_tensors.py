"""Energies with sparse tensors, such as the precision of a Gaussian Markov random field."""

import copy

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExpressionError
from tests.factories import needs_compiler

pytestmark = pytest.mark.filterwarnings("ignore:Sparse C:UserWarning")  # that compressed layouts are new
LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc]
PRECISION = torch.diag_embed(torch.full((6,), 2.0)) - torch.diag_embed(torch.ones(5), 1) - torch.diag_embed(torch.ones(5), -1)
OPTIONS = {"sampler": "langevin", "step_size": 0.05, "steps": 10, "seed": 0}


class Field(nn.Module):
    def __init__(self, layout=torch.strided):
        super().__init__()
        precision = PRECISION if layout is torch.strided else PRECISION.to_sparse(layout=layout)
        self.register_buffer("precision", precision.coalesce() if layout is torch.sparse_coo else precision)

    def forward(self, x):
        return (x * (self.precision @ x.T).T).sum(1) / 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_draws_are_those_of_the_dense_matrix(layout):
    sparse, dense = (ce.as_energy(Field(each)) for each in (layout, torch.strided))
    torch.testing.assert_close((sparse & sparse).sample((4, 6), **OPTIONS), (dense & dense).sample((4, 6), **OPTIONS))


def test_copies_count_once_until_a_value_changes():
    energy, x = ce.as_energy(Field(torch.sparse_coo)), torch.ones(1, 6)  # torch does not copy other sparse layouts
    copied = copy.deepcopy(energy)
    both = energy | copied
    assert torch.equal(both(x), (energy | energy)(x))
    next(copied.buffers()).values().mul_(2)
    with pytest.raises(ExpressionError, match="their numbers differ now"):
        both(x)
    assert not torch.equal((energy | copied)(x), (energy | energy)(x))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_torch_does_not_compile_runs_without(layout):
    energy = ce.as_energy(Field(layout))
    with pytest.warns(RuntimeWarning, match=r"without torch\.compile"):
        draws = energy.sample((4, 6), compile=True, **OPTIONS)
    assert torch.equal(draws, energy.sample((4, 6), **OPTIONS))

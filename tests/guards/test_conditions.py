"""Conditions that are not what they seem: `infer` and `sample` refuse them at the call, and say what to write."""

from __future__ import annotations

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError

AT = ce.as_energy(lambda x, position: (x - position).square().sum(1) / 2, name="at", event_shape=(2,))
LABEL = ce.as_energy(lambda x, y: (x[:, 0] - y).square() / 2 + x[:, 1].square() / 2, name="label", event_shape=(2,))
X = torch.tensor([[1.0, 2.0], [0.0, 0.5]])
POSITION = torch.tensor([1.0, 2.0])


def test_infer_refuses_candidates_that_are_no_mapping_to_lists():
    for over in ("position", None, {"position"}, {"position": "near"}, {"position": {0: 1}}):
        with pytest.raises(OptionError, match=r"over=\{'position': \[...\]\}"):
            AT.infer(X, over=over)
    with pytest.raises(OptionError, match=r"depends on \['position'\]; got candidates of \['3'\]"):
        AT.infer(X, over={3: [1]})


def test_infer_takes_points_as_rows_of_tensors_arrays_and_lists():
    candidates = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    distances = (X[:, None] - candidates).square().sum(2) / 2
    expected = torch.log_softmax(-distances, 1)
    for rows in (candidates, candidates.numpy(), candidates.tolist(), tuple(map(tuple, candidates.tolist()))):
        torch.testing.assert_close(AT.infer(X, over={"position": rows}).log_probabilities, expected)


def test_a_number_for_each_point_and_a_vector_for_each_point_are_bound():
    numbers = torch.tensor([0.5, 1.5])
    torch.testing.assert_close(LABEL.given(y=numbers)(X), (X[:, 0] - numbers).square() / 2 + X[:, 1].square() / 2)
    torch.testing.assert_close(AT.given(position=X.flip(0))(X), (X - X.flip(0)).square().sum(1) / 2)
    assert LABEL.given(y=torch.tensor([0, 1]))(X).shape == (2,)


def test_sample_refuses_another_number_of_rows_before_it_evaluates():
    shapeless = ce.as_energy(lambda x, position: (x - position).square().sum(1) / 2)
    for energy, shape in ((LABEL.given(y=torch.zeros(3)), 5), (shapeless.given(position=POSITION) & LABEL.given(y=0), (5, 2))):
        with pytest.raises(ShapeError, match=r"5 points were asked for. Ask for [23]; or"):
            energy.sample(shape, seed=0)
    assert LABEL.given(y=torch.zeros(3)).sample(3, seed=0, sampler="langevin", step_size=0.1, steps=2).shape == (3, 2)

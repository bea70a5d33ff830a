"""The contrast of labels against cross entropy, and what it leaves alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from composable_energy_training import LabelContrast
from plugins.training.tests.objective_helpers import batch_of, data, gradients


class Table(ce.Energy):
    """Linear energies, one row of weights for each of five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(data(5, 2, seed=1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * self.rows[y]).sum(1)


def test_with_all_classes_it_is_cross_entropy():
    x, kind, model = data(12, 2), torch.arange(12) % 5, Table()
    loss = LabelContrast("kind", classes=range(5)).loss(model, batch_of(x, kind=kind))
    logits = -x @ model.rows.T
    torch.testing.assert_close(loss.value, F.cross_entropy(logits, kind))
    assert loss.scalars["accuracy"] == (logits.argmax(1) == kind).double().mean()
    squares = LabelContrast("kind", classes=range(5), l2=0.5).loss(model, batch_of(x, kind=kind)).value - loss.value
    torch.testing.assert_close(squares, 0.5 * logits.gather(1, kind[:, None]).square().mean())


def test_energies_of_other_classes_are_left_alone():
    x, kind, model = data(12, 2), 1 + 2 * (torch.arange(12) % 2), Table()
    for objective in (LabelContrast("kind"), LabelContrast("kind", classes=(3, 1))):
        changed = gradients(model, objective.loss(model, batch_of(x, kind=kind)))[0].abs().sum(1) > 0
        assert changed.tolist() == [False, True, False, True, False]


def test_pictures_keep_their_shape():
    class Pictures(Table):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x[:, 0, 0], y)

    x, kind = data(6, 1, 3, 2), torch.arange(6) % 3
    flat = LabelContrast("kind").loss(Table(), batch_of(x[:, 0, 0], kind=kind))
    assert LabelContrast("kind").loss(Pictures(), batch_of(x, kind=kind)).value == flat.value

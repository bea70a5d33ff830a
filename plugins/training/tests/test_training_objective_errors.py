"""Errors of the objectives for bad input, and their results in half precision."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy_training import (
    AttributeHeads,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    DiffusionRecoveryLikelihood,
    EnergyDiscrepancy,
    EnergyMatching,
    GaussianNoise,
    ImprovedContrastiveDivergence,
    JointEnergyClassifier,
    LabelContrast,
    NoiseContrastive,
)
from plugins.training.tests.objective_helpers import (
    IMPROVED,
    LANGEVIN,
    Bell,
    Heads,
    Joint,
    Net,
    batch_of,
    cast,
    context,
    data,
    gradients,
    labelled,
    prepare,
    scattered,
)
from tests.refusals import refusals

MATCHING: dict[str, Any] = {"temperature": 0.5, "warm_up": 0}
NOISE = GaussianNoise(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))


test_bad_input_is_reported = refusals(
    (lambda: ContrastiveDivergence(steps=0), "steps must be a whole number of at least 1, got 0"),
    (lambda: ContrastiveDivergence(steps=1, start="data"), "persistent=False"),
    (lambda: prepare(ContrastiveDivergence(steps=1)), "langevin needs step_size"),
    (lambda: prepare(ContrastiveDivergence(**LANGEVIN), nn.Linear(2, 1)), "trains an energy, got Linear"),
    (lambda: ContrastiveDivergence(**LANGEVIN).loss(Net(), batch_of(data(4, 2))), "is not prepared"),
    (
        lambda: prepare(ContrastiveDivergence(**LANGEVIN, condition="hair")).loss(Net(3), labelled(0)),
        "no attribute hair; they have kind",
    ),
    (lambda: prepare(ContrastiveDivergence(**LANGEVIN, condition="kind")).loss(Net(3), labelled(-1)), "kind is unknown"),
    (lambda: prepare(ContrastiveDivergence(**LANGEVIN)).loss(Net(), scattered()), "must be consecutive"),
    (lambda: DenoisingScoreMatching(0.0, 1.0), "0 < sigma_min <= sigma_max, got 0.0 and 1.0"),
    (lambda: AttributeHeads({"male": 1}, 0.1, 1.0), "The number of values of male must be a whole number of at least 2, got 1"),
    (lambda: AttributeHeads({"kind": 2}, 0.1, 1.0).loss(Heads(1), labelled(0)), "kind has 2 values, from 0 to 1, .* from 0 to 2"),
    (lambda: AttributeHeads({"kind": 3}, 0.1, 1.0).loss(Heads(3), labelled(-2)), "got labels from -2 to 2"),
    (lambda: DenoisingScoreMatching(0.1, 1.0).loss(Net(), labelled(0)), "Net does not depend on the noise level"),
    (lambda: prepare(ContrastiveDivergence(**LANGEVIN, condition="kind")).loss(Bell(), labelled(0)), "Bell does not depend on y"),
    (lambda: prepare(ImprovedContrastiveDivergence(steps=1, options={"step_size": 1, "metric": torch.ones(2)})), "supports no metric"),
    (lambda: prepare(ImprovedContrastiveDivergence(**IMPROVED, buffer=7)).loss(Net(), labelled(0)), "two slots for each row, has 7"),
    (lambda: prepare(JointEnergyClassifier(**LANGEVIN)), "needs a method `logits"),
    (lambda: prepare(JointEnergyClassifier(**LANGEVIN, label="kind"), Joint()).loss(Joint(), labelled(3)), "kind has 3 values"),
    (lambda: NoiseContrastive(cast(torch.distributions.Normal(0.0, 1.0))), "another NoiseDistribution, got Normal"),
    (
        lambda: ContrastiveDivergence(**LANGEVIN).loss(ce.as_energy(lambda x, y: x.sum(1) * y), labelled(0)),
        "depends on y: give the objective `condition=`, .* which have 'kind'",
    ),
    (lambda: GaussianNoise(torch.zeros(2), cast(1.0)), r"scale must have shape \(2, 2\)"),
    (lambda: GaussianNoise(torch.zeros(2), torch.zeros(2, 2)), "positive diagonal"),
    (lambda: GaussianNoise.fit(torch.zeros(5, 2)), "singular"),
    (lambda: DiffusionRecoveryLikelihood(0.1, 1.0, ratio=1.0), "ratio must be a number"),
    (lambda: EnergyMatching(**MATCHING, cutoff=1.0), "cutoff must be a number from 0 to below 1, got 1.0"),
    (lambda: EnergyMatching(**MATCHING, coupling=3).loss(Net(), labelled(0)), "Rows 0 to 3 cannot be divided into groups of 3"),
    (lambda: LabelContrast("kind", classes=[1]), r"at least two classes, got \[1\]"),
    (lambda: LabelContrast("kind", classes=[0, 1]).loss(Net(3), labelled(0)), r"kind has the class 2, but classes are \[0, 1\]"),
    (lambda: LabelContrast("kind").begin(Net(3), context(4, (2,), range(2))), "give `classes`"),
    (lambda: LabelContrast("size").loss(Net(3), batch_of(data(4, 2), size=data(4))), "size has numbers"),
    (lambda: NoiseContrastive(NOISE).loss(Net(), batch_of(data(4, 3))), r"points of shape \(2,\), got points of shape \(3,\)"),
    (
        lambda: AttributeHeads({"male": 2, "hair": 3}, 0.1, 1.0).loss(Heads(5), labelled(0)),
        r"male \(2\), hair \(3\) need logits of shape \(4, 4\), one .* got \(4, 5\)",
    ),
    error=ce.errors.ComposableEnergyError,
)


class Single(Net):
    """A network of float32, with a noise level and logits."""

    def __init__(self) -> None:
        super().__init__(labels=3)
        self.float()

    def forward(self, x: Tensor, y: Tensor | None = None, sigma: Tensor | None = None) -> Tensor:
        return super().forward(x, y) * (1 if sigma is None else sigma)

    def logits(self, x: Tensor) -> Tensor:
        return self.layers(x) * torch.arange(3.0)


@pytest.mark.parametrize(
    "objective",
    [
        ContrastiveDivergence(**LANGEVIN, condition="kind"),
        ImprovedContrastiveDivergence(**LANGEVIN, entropy_after=0),
        DenoisingScoreMatching(0.1, 1.0),
        JointEnergyClassifier(**LANGEVIN, label="kind"),
        EnergyDiscrepancy(0.5),
        NoiseContrastive(GaussianNoise(torch.zeros(2), torch.eye(2))),
        DiffusionRecoveryLikelihood(0.1, 1.0, steps=3),
        EnergyMatching(**MATCHING, steps=3, coupling=2),
        LabelContrast("kind"),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_networks_may_compute_in_half_precision(objective):
    model, batch = Single(), batch_of(data(4, 2).float(), kind=torch.tensor([0, 1, 2, 1]))
    results = []
    for half in (False, True):
        objective.begin(model, context(4, (2,), dtype=torch.float32))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = objective.loss(model, batch)
        assert loss.value.dtype == torch.float32
        assert all(value.shape == () and not value.requires_grad and value.isfinite() for value in loss.scalars.values())
        # The monitor watches the gap of chains; what an objective without them learns has another name.
        margin = isinstance(objective, EnergyDiscrepancy | NoiseContrastive | LabelContrast)
        assert ("margin" in loss.scalars) == margin and not (margin and "gap" in loss.scalars)
        results.append(torch.cat([grad.flatten() for grad in gradients(model, loss)]))
    assert (results[0] - results[1]).norm() < 0.05 * results[0].norm()

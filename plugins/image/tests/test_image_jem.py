"""A classifier that is an energy: its events are exact."""

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ContradictionError, OptionError


@pytest.fixture
def jem():
    torch.manual_seed(0)
    energy = ce.get("energy", "jem", depth=10, width=1, size=8, labels=4).eval()
    with torch.no_grad():
        energy.net.module.head.weight.mul_(10)  # so that labels differ  # pyright: ignore
    return energy


@pytest.fixture
def x():
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_energy_is_the_log_sum_of_the_logits(jem, x):
    torch.testing.assert_close(jem(x), -jem.logits(x).exp().sum(1).log())


def test_the_energy_of_a_label_is_its_logit(jem, x):
    logits = jem.logits(x)
    for label in range(4):
        torch.testing.assert_close(jem.of(label)(x), -logits[:, label])
        torch.testing.assert_close(jem.of(label).evidence(x), -logits.log_softmax(1)[:, label])
        torch.testing.assert_close(jem.of().given(y=label)(x), -logits[:, label])
    y = torch.tensor([0, 1, 2, 3, 0])
    torch.testing.assert_close(jem.of().given(y=y)(x), -logits.gather(1, y[:, None]).squeeze(1))


def test_an_event_and_its_complement_are_everything(jem, x):
    event = jem.of(1)
    torch.testing.assert_close((event | ~event)(x), jem(x))
    torch.testing.assert_close(event.evidence(x).neg().exp() + (~event).evidence(x).neg().exp(), torch.ones(5))
    torch.testing.assert_close((jem.of(1) | jem.of(2))(x), jem.of([1, 2])(x))
    torch.testing.assert_close((~jem.of([0, 3]))(x), jem.of([1, 2])(x))
    with pytest.raises(ContradictionError):
        (jem.of(1) & jem.of(2))(x)


def test_a_label_that_there_is_not_is_reported(jem):
    for label in (4, -1, 1.5, "cat", [1, 4]):
        with pytest.raises(OptionError, match=r"[Ll]abel"):
            jem.of(label)


def test_an_expression_of_events_evaluates_the_net_once(jem, x):
    calls = []
    jem.net.module.register_forward_hook(lambda *_: calls.append(1))
    (jem.of(0) | ~jem.of([1, 2])).with_gradient(x)
    assert len(calls) == 1


def test_saved_events_share_their_net(jem, x, tmp_path):
    expression = jem.of(0) | ~jem.of([1, 2])
    expression.save(tmp_path / "saved")
    again = ce.load(tmp_path / "saved")
    assert torch.equal(again(x), expression(x))
    assert len({id(p) for p in again.parameters()}) == len(list(jem.parameters()))


def test_images_are_read_as_twice_themselves_less_one(jem, x):
    """The paper's images are in [-1, 1]; the first layer sees those."""
    seen = []
    jem.net.module.read.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    jem(x)
    torch.testing.assert_close(seen[0], 2 * x - 1)


def test_the_recommended_steps_are_those_of_the_paper_in_its_units(jem):
    """u' = u - dE/du + .01 xi with u = 2 x - 1, so that dE/du = dE/dx / 2 and dx = du / 2."""
    options = jem.recommended.options
    assert options["step_size"] / 2 == 1.0 / 4 and options["clamp"] is None
    assert (options["step_size"] * options["temperature"]) ** 0.5 == pytest.approx(0.01 / 2)

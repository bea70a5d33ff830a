"""Edits: what is asked changes, what is kept stays, and nothing else moves far; sequences, undoing, files, contradictions."""

import pytest
import torch
from torch import nn
from torch.distributions import Uniform

from composable_energy.errors import ExpressionError, FileFormatError, OptionError, ShapeError
from composable_energy_latent import Attributes, EditError, Edits, EditWeights, attribute, continuous, edit, graded, latent

G = torch.Generator().manual_seed(0)
MIXING = torch.linalg.qr(torch.randn(6, 6, generator=G))[0]


def world(prior=6) -> Attributes:
    """Six latents that are mixed into w; attributes are along axes of w, with a little of the next axis."""
    base = latent(lambda w: torch.tanh(w), prior, mapping=lambda z: z @ MIXING)
    names = ("a", "b", "c", "d")
    found = {name: attribute(base, lambda w, i=i: 8 * (w[:, i] + 0.3 * w[:, i + 1]), name, on="w") for i, name in enumerate(names)}
    return Attributes(base, found | {"tone": continuous(base, lambda w: w[:, 5], "tone", on="w", width=0.3)})


def truth(z: torch.Tensor, i: int) -> torch.Tensor:
    w = z @ MIXING
    return w[:, i] + 0.3 * w[:, i + 1] > 0


@pytest.fixture(scope="module")
def found():
    return world()


Z = torch.randn(200, 6, generator=G)


@pytest.mark.full
def test_what_is_asked_changes_and_the_rest_stays(found):
    for keep in (found, [found["b"], found["c"], found["d"], found["tone"]]):
        edits = edit(Z, found["a"], keep=keep)
        after = edits.latents
        assert truth(after, 0).float().mean() > 0.97
        for i in (1, 2, 3):
            assert (truth(after, i) == truth(Z, i)).float().mean() > 0.95
        assert ((after - Z) @ MIXING)[:, 5].abs().mean() < 0.1
        assert set(edits.last.kept) == {"b", "c", "d", "tone"}
        assert min(edits.last.kept.values()) > 0.93
        assert edits.last.reached.mean() > 0.9
    assert torch.equal(edits.original, Z)


def test_one_of_several_labels_is_kept_where_none_is_likely(found):
    labels = [attribute(found.base, lambda w: w[:, 2:5] / 4, f"label={i}", on="w", label=i) for i in range(3)]
    before = (Z[:50] @ MIXING)[:, 2:5].argmax(1)
    assert ((Z[:50] @ MIXING)[:, 2:5].div(4).softmax(1).max(1).values < 0.5).any()
    edits = edit(Z[:50], found["a"], keep=labels)
    assert ((edits.latents @ MIXING)[:, 2:5].argmax(1) == before).double().mean() > 0.9


@pytest.mark.full
def test_points_that_fulfil_it_hardly_move(found):
    z = Z[:50]
    already, near = truth(z, 0), EditWeights(asked=1, margin=0)  # up to the border alone
    moved = (edit(z, found["a"], keep=found, weights=near).latents - z).norm(dim=1)
    assert moved[already].mean() < moved[~already].mean() / 3


@pytest.mark.full
def test_logic_grades_and_values(found):
    a, b, c, z = found["a"], found["b"], found["c"], Z[:60]
    for E, holds in (
        (a & ~b, lambda z: truth(z, 0) & ~truth(z, 1)),
        ((a & b) | (~a & c), lambda z: (truth(z, 0) & truth(z, 1)) | (~truth(z, 0) & truth(z, 2))),
        (~(a | b), lambda z: ~truth(z, 0) & ~truth(z, 1)),
        (found["tone"].between(0.5, 1.0), lambda z: ((z @ MIXING)[:, 5] - 0.75).abs() < 0.3),
    ):
        assert holds(edit(z, E, keep=found).latents).float().mean() > 0.95
    goals = torch.linspace(-1, 1, 60)  # each picture may be asked for its own value
    tone = (edit(z, found["tone"](goals[:, None])).latents @ MIXING)[:, 5]
    assert (tone - goals).abs().mean() < 0.1
    low, high = (edit(z, graded(a)(grade), keep=found).latents @ MIXING for grade in (0.5, 1.5))
    assert ((low[:, 0] + 0.3 * low[:, 1]) - 0.25).abs().mean() < 0.1  # log odds of 2 in units of 8
    assert ((high[:, 0] + 0.3 * high[:, 1]) - 0.75).abs().mean() < 0.1


@pytest.mark.full
def test_sequences_can_be_undone_saved_and_continued(found, tmp_path):
    first = edit(Z[:50], found["a"], keep=found)
    second = first.edit(found["b"], keep=[found["a"]])
    third = second.edit(~found["c"], keep=found)
    assert [step.asked for step in third.steps] == ["a", "b", "~c"]
    for i, wanted in ((0, True), (1, True), (2, False)):
        assert (truth(third.latents, i) == wanted).float().mean() > 0.93
    assert third.undo().undo().latents is first.latents
    assert third.undo(3).latents is third.original
    with pytest.raises(EditError, match="3 edits, so 4"):
        third.undo(4)
    assert third.between(5).shape == (5, 50, 6)
    torch.testing.assert_close(third.between(2)[0], second.images)
    third.save(tmp_path / "edits.safetensors")
    again = Edits.load(tmp_path / "edits.safetensors", found.base)
    assert str(again) == str(third)
    for name in ("latents", "reached", "distance", "evaluations"):
        assert torch.equal(getattr(again.last, name), getattr(third.last, name))
    torch.testing.assert_close(again.edit(found["d"]).latents, third.edit(found["d"]).latents)


def test_the_distance_is_that_of_the_features_from_the_start(found):
    edits = edit(Z[:20], found["a"]).edit(found["b"], identity=lambda x: x[:, :2])
    expected = (edits.images - torch.tanh(Z[:20] @ MIXING))[:, :2].square().mean(1).sqrt()
    torch.testing.assert_close(edits.last.distance, expected)


@pytest.mark.full
def test_a_prior_with_a_support_keeps_it():
    found = world(Uniform(-torch.ones(6), torch.ones(6)))
    z = Z[:100].clamp(-0.9, 0.9)
    after = edit(z, found["a"], keep=found).latents
    assert (after.abs() < 1).all()
    assert truth(after, 0).float().mean() > 0.9
    with pytest.raises(EditError, match="outside the support of prior"):
        edit(Z * 5, found["a"])


def test_modules_of_the_caller_do_not_change():
    base = latent(nn.Linear(3, 4), 3)
    network = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5), nn.Flatten(0)).train()
    E = attribute(base, network, "a")
    z = torch.randn(5, 3, generator=G)
    torch.testing.assert_close(edit(z, E).latents, edit(z, E).latents)
    assert network.training and all(p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.full
def test_contradictions_say_what_is_kept(found):
    a, b = found["a"], found["b"]
    with pytest.raises(EditError, match=r"~a contradicts what is kept: \d+ of the pictures have a, which stays"):
        edit(Z, ~a, keep=[a])
    with pytest.raises(EditError, match="contradicts what is kept"):
        edit(Z, a & b, keep=[b])
    edit(Z[truth(Z, 1)], a & b, keep=[b])  # all of these have b
    edit(Z, a & b, keep=found)  # of a mapping, b is skipped
    with pytest.raises(EditError, match="No picture fulfils"):
        edit(Z, a & ~a)


def test_other_wrong_arguments(found, tmp_path):
    a = found["a"]
    with pytest.raises(ShapeError, match=r"shape \(B, 6\)"):
        edit(torch.zeros(2, 5), a)
    with pytest.raises(ExpressionError, match="has no prior with a generator"):
        edit(Z, attribute(found.base, lambda z: z[:, 0], "x").rebuild(base=None))
    with pytest.raises(OptionError, match="asks for an expression"):
        edit(Z, "a")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="keep takes"):
        edit(Z, a, keep=[a | found["b"]])
    with pytest.raises(OptionError, match="asked"):
        EditWeights(asked=-1)
    with pytest.raises(EditError, match="no edit yet"):
        _ = Edits(found.base, Z).last
    path = tmp_path / "edits"
    path.write_bytes(b"no file of tensors")
    with pytest.raises(FileFormatError, match="no record"):
        Edits.load(path, found.base)
    Edits(found.base, Z).save(path)
    with pytest.raises(FileFormatError, match="latent points of shape"):
        Edits.load(path, latent(nn.Linear(3, 4), 3))

"""Edits change what is asked and keep what stays, in sequences and files; fitting of attributes, and labels that are refused."""

import pytest
import torch
from torch import nn
from torch.distributions import Uniform

import composable_energy as ce
import composable_energy_latent as latents
from composable_energy.errors import ExpressionError, FileFormatError, OptionError, ShapeError
from composable_energy.testing import check_sampler
from plugins.latent.tests.closed_case import direction, errors, logistic, moments
from tests.refusals import refusals, refused

G = torch.Generator().manual_seed(0)
MIXING = torch.linalg.qr(torch.randn(6, 6, generator=G))[0]


def world(prior=6) -> latents.Attributes:
    """Six latents that are mixed into w; attributes are along axes of w, with a little of the next axis."""
    base = latents.latent(lambda w: torch.tanh(w), prior, mapping=lambda z: z @ MIXING)
    names = ("a", "b", "c", "d")
    found = {name: latents.attribute(base, lambda w, i=i: 8 * (w[:, i] + 0.3 * w[:, i + 1]), name, on="w") for i, name in enumerate(names)}
    return latents.Attributes(base, found | {"tone": latents.continuous(base, lambda w: w[:, 5], "tone", on="w", width=0.3)})


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
        edits = latents.edit(Z, found["a"], keep=keep)
        after = edits.latents
        assert truth(after, 0).float().mean() > 0.97
        for i in (1, 2, 3):
            assert (truth(after, i) == truth(Z, i)).float().mean() > 0.95
        assert ((after - Z) @ MIXING)[:, 5].abs().mean() < 0.1 and set(edits.last.kept) == {"b", "c", "d", "tone"}
        assert min(edits.last.kept.values()) > 0.93 and edits.last.reached.mean() > 0.9
    assert torch.equal(edits.original, Z)


def test_one_of_several_labels_is_kept_where_none_is_likely(found):
    labels = [latents.attribute(found.base, lambda w: w[:, 2:5] / 4, f"label={i}", on="w", label=i) for i in range(3)]
    before = (Z[:50] @ MIXING)[:, 2:5].argmax(1)
    assert ((Z[:50] @ MIXING)[:, 2:5].div(4).softmax(1).max(1).values < 0.5).any()
    assert ((latents.edit(Z[:50], found["a"], keep=labels).latents @ MIXING)[:, 2:5].argmax(1) == before).double().mean() > 0.9


@pytest.mark.full
def test_points_that_fulfil_it_hardly_move(found):
    z = Z[:50]
    already, near = truth(z, 0), latents.EditWeights(asked=1, margin=0)  # up to the border alone
    moved = (latents.edit(z, found["a"], keep=found, weights=near).latents - z).norm(dim=1)
    assert moved[already].mean() < moved[~already].mean() / 3
    asked = {"expression": found["a"], "keep": found}
    with pytest.warns(ce.SamplingWarning, match="15 of 20 edits end where a has a probability below a half"):
        once = latents.edit(z[~already], **asked, weights=latents.EditWeights(asked=0.02, margin=0, rounds=0)).last
    again = latents.edit(z[~already], **asked, weights=latents.EditWeights(asked=0.02, margin=0)).last
    assert (again.reached > 0.5).all() and (again.evaluations[once.reached > 0.5] == once.evaluations[once.reached > 0.5]).all()


@pytest.mark.full
def test_logic_grades_and_values(found):
    a, b, c, z = found["a"], found["b"], found["c"], Z[:60]
    for E, holds in (
        (a & ~b, lambda z: truth(z, 0) & ~truth(z, 1)),
        ((a & b) | (~a & c), lambda z: (truth(z, 0) & truth(z, 1)) | (~truth(z, 0) & truth(z, 2))),
        (~(a | b), lambda z: ~truth(z, 0) & ~truth(z, 1)),
        (found["tone"].between(0.5, 1.0), lambda z: ((z @ MIXING)[:, 5] - 0.75).abs() < 0.3),
    ):
        assert holds(latents.edit(z, E, keep=found).latents).float().mean() > 0.95
    goals = torch.linspace(-1, 1, 60)  # each picture may be asked for its own value
    assert ((latents.edit(z, found["tone"](goals[:, None])).latents @ MIXING)[:, 5] - goals).abs().mean() < 0.1
    low, high = (latents.edit(z, latents.graded(a)(grade), keep=found).latents @ MIXING for grade in (0.5, 1.5))
    assert ((low[:, 0] + 0.3 * low[:, 1]) - 0.25).abs().mean() < 0.1  # log odds of 2 in units of 8
    assert ((high[:, 0] + 0.3 * high[:, 1]) - 0.75).abs().mean() < 0.1


@pytest.mark.full
def test_sequences_can_be_undone_saved_and_continued(found, tmp_path):
    first = latents.edit(Z[:50], found["a"], keep=found)
    second = first.edit(found["b"], keep=[found["a"]])
    third = second.edit(~found["c"], keep=found)
    assert [step.asked for step in third.steps] == ["a", "b", "~c"]
    for i, wanted in ((0, True), (1, True), (2, False)):
        assert (truth(third.latents, i) == wanted).float().mean() > 0.93
    assert third.undo().undo().latents is first.latents and third.undo(3).latents is third.original
    refused(latents.EditError, "3 edits, so 4", third.undo, 4)
    assert third.between(5).shape == (5, 50, 6) and torch.allclose(third.between(2)[0], second.images)
    third.save(tmp_path / "edits.safetensors")
    again = latents.Edits.load(tmp_path / "edits.safetensors", found.base)
    assert str(again) == str(third)
    for name in ("latents", "reached", "distance", "evaluations"):
        assert torch.equal(getattr(again.last, name), getattr(third.last, name))
    torch.testing.assert_close(again.edit(found["d"]).latents, third.edit(found["d"]).latents)


def test_the_distance_is_that_of_the_features_from_the_start(found):
    edits = latents.edit(Z[:20], found["a"]).edit(found["b"], identity=lambda x: x[:, :2])
    torch.testing.assert_close(edits.last.distance, (edits.images - torch.tanh(Z[:20] @ MIXING))[:, :2].square().mean(1).sqrt())


@pytest.mark.full
def test_a_prior_with_a_support_keeps_it():
    after = latents.edit(Z[:100].clamp(-0.9, 0.9), (found := world(Uniform(-torch.ones(6), torch.ones(6))))["a"], keep=found).latents
    assert (after.abs() < 1).all() and truth(after, 0).float().mean() > 0.9
    refused(latents.EditError, "outside the support of prior", latents.edit, Z * 5, found["a"])


def test_modules_of_the_caller_do_not_change():
    base = latents.latent(nn.Linear(3, 4), 3)
    network = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5), nn.Flatten(0)).train()
    E = latents.attribute(base, network, "a")
    z = torch.randn(5, 3, generator=G)
    torch.testing.assert_close(latents.edit(z, E).latents, latents.edit(z, E).latents)
    assert network.training and all(p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.full
def test_contradictions_say_what_is_kept(found):
    a, b = found["a"], found["b"]
    refused(latents.EditError, r"~a contradicts what is kept: \d+ of the pictures have a, which stays", latents.edit, Z, ~a, keep=[a])
    refused(latents.EditError, "contradicts what is kept", latents.edit, Z, a & b, keep=[b])
    latents.edit(Z[truth(Z, 1)], a & b, keep=[b])  # all of these have b
    latents.edit(Z, a & b, keep=found)  # of a mapping, b is skipped
    refused(latents.EditError, "No picture fulfils", latents.edit, Z, a & ~a)
    refused(ce.errors.OptionError, "weights must be a EditWeights, got 3", latents.edit, Z, a, weights=3)
    refused(ce.errors.OptionError, "keep takes events .* got None", latents.edit, Z, a, keep=None)


def test_other_wrong_arguments(found, tmp_path):
    a, path = found["a"], tmp_path / "edits"
    without = latents.attribute(found.base, lambda z: z[:, 0], "x").rebuild(base=None)
    for call, error, message in (
        (lambda: latents.edit(torch.zeros(2, 5), a), ShapeError, r"shape \(B, 6\)"),
        (lambda: latents.edit(Z, without), ExpressionError, "has no prior with a generator"),
        (lambda: latents.edit(Z, a, identity=lambda x: x[:3]), ShapeError, r"\(B, F\), got \(3, 6\) for 200 pictures"),
        (lambda: latents.edit(Z, "a"), OptionError, "asks for an expression"),  # type: ignore[arg-type]
        (lambda: latents.edit(Z, a, keep=[a | found["b"]]), OptionError, "keep takes"),
        (lambda: latents.EditWeights(asked=-1), OptionError, "asked"),
        (lambda: latents.Edits(latents.latent(nn.Linear(6, 4), 6), Z).edit(a), latents.EditError, "another prior or generator"),
        (lambda: latents.Edits(found.base, Z).last, latents.EditError, "no edit yet"),
    ):
        refused(error, message, call)
    path.write_bytes(b"no file of tensors")
    refused(FileFormatError, "no record", latents.Edits.load, path, found.base)
    latents.Edits(found.base, Z).save(path)
    for size, message in ((3, "latent points of shape"), (6, "pictures of another generator")):
        refused(FileFormatError, message, latents.Edits.load, path, latents.latent(nn.Linear(size, 6), size))


def base(prior=3):
    mixing = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    return latents.latent(lambda w: torch.tanh(w @ mixing), prior, mapping=lambda z: z * torch.tensor([1.0, 2.0, 0.5]))


def labeller(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Three kinds of labels, functions of the picture."""
    return {"bright": x.mean(1) > 0, "side": (x[:, 0] > -0.5).long() + (x[:, 0] > 0.5).long(), "tone": x[:, 2]}


@pytest.fixture(scope="module")
def fitted():
    return latents.fit_attributes(base(), labeller, values={"side": ("left", "middle", "right")}, count=4000, steps=800, seed=0)


@pytest.mark.full
def test_it_learns_labels_of_all_kinds(fitted):
    refused(OptionError, "name must be one of '", fitted.report.__getitem__, "nobody")
    assert list(fitted) == ["bright", "side=left", "side=middle", "side=right", "tone"]
    assert ((report := fitted.report).pictures, report.held_out) == (4000, 400)
    for name in ("bright", "side", "tone"):
        assert report[name].accuracy > 0.93 and report[name].ece < 0.08, report
    assert str(report).splitlines()[-1].startswith("4000 pictures, 400 held out")


@pytest.mark.full
def test_draws_have_the_attributes_that_were_asked_for(fitted):
    truth = labeller((fitted["bright"] & ~fitted["side=middle"]).sample(400, sampler=latents.LACE(), seed=0))
    assert (truth["bright"] & (truth["side"] != 1)).float().mean() > 0.92
    assert abs(fitted["tone"](0.5).sample(300, seed=0)[:, 2].mean().item() - 0.5) < 0.1


@pytest.mark.slow
def test_a_seed_gives_the_same_heads():
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    first, again, other = (latents.fit_attributes(base(), labeller, on="w", count=300, steps=20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(first["bright"](z), again["bright"](z))
    assert not torch.equal(first["bright"](z), other["bright"](z))


@pytest.mark.full
def test_rounds_label_the_pictures_that_a_flow_is_led_to():
    seen, box = [], torch.distributions.Uniform(-torch.ones(3), torch.ones(3))

    def labels(x):
        seen.append(x)
        return labeller(x)

    found, x = latents.fit_attributes(base(box), labels, on="w", count=2001, rounds=2, steps=300, seed=0), torch.cat(seen)
    assert len(x) == found.report.pictures == 2001 and found.report.held_out == 100
    shares = [(labeller(part)["side"] == 1).double().mean() for part in (x[:1001], x[1001:])]
    assert x.abs().max() < 1 and abs(shares[0] - shares[1]) < 0.1  # labels as frequent as before, from other latent points
    assert found.report["side"].accuracy > 0.9


def test_a_tensor_of_labels_has_names(capsys):
    found = latents.fit_attributes(base(), lambda x: x[:, :2] > 0, names=("a", "b"), count=300, steps=10, progress=True)
    assert list(found) == ["a", "b"] and "label" in (shown := capsys.readouterr().err) and "train" in shown
    refused(OptionError, "no attribute 'c'; known are a, b", found.__getitem__, "c")


test_labels_that_teach_nothing_are_refused = refusals(
    (lambda x: {"rare": x[:, 0] > 2}, "Of 200 pictures 0 show rare, too few"),
    (lambda x: {"a": -(x[:, 0] > 0).long()}, "whole numbers from 0"),
    (lambda x: {"tone": x[:, 0] / 0 * 0}, "200 of 200 values of tone are not finite"),
    (lambda x: {"a": x > 0}, r"have shape \(200, 5\) for 200 pictures"),
    (lambda x: x > 0, "give each column a name of its own"),
    (lambda x: {"a": [True] * len(x)}, "returned list; return a mapping of names to tensors of torch"),
    (lambda x: {}, "gave no attribute; return all names"),
    (lambda x: x[:, :2] > 0, {"names": ("a", "a")}, "give each column a name of its own"),
    (labeller, {"values": {"side": ("a", "a")}}, "must have distinct names, got .*side=a, side=a"),
    (lambda x: {"a": x[:, 0] if len(x) < 250 else x[:, 0] > 0}, {"count": 300}, "gave a for some batches only, or as labels"),
    call=lambda labels, options=None: latents.fit_attributes(base(), labels, **{"count": 200, "steps": 1, **(options or {})}),
    error=latents.LabelError,
)


def test_other_wrong_arguments_of_fits():
    plain = ce.as_energy(torch.distributions.Normal(torch.zeros(3), 1.0), decoder=nn.Linear(3, 4))
    refused(latents.LabelError, "no Generator as its decoder", latents.fit_attributes, plain, labeller, count=200)
    for wrong in ({"on": "x"}, {"count": 5}, {"rounds": 2}, {"steps": 0}, {"batch_size": 0}, {"width": 0}):
        refused(OptionError, None, latents.fit_attributes, base(), labeller, **{"count": 200, "steps": 1, **wrong})


@pytest.mark.full
@pytest.mark.parametrize(("d", "slope", "offset"), [(1, 2.0, 0.0), (2, 5.0, -2.5), (32, 2.0, 0.0), (8, 5.0, -2.5)])
@pytest.mark.parametrize("sampler", ["chees", latents.LACE(draws=64)])
def test_draws_have_the_moments_of_the_posterior(d, slope, offset, sampler):
    E, a = logistic(d, slope, offset)
    z = E.latents.sample(4000, sampler=sampler, seed=0)
    assert max(errors(z @ a, moments(slope, offset))) < 4
    if d > 1:
        rest = z @ torch.linalg.svd(a[None])[2][1:].T
        assert (rest.mean(0).abs() < 4.5 / len(z) ** 0.5).all() and ((rest.var(0) - 1).abs() < 4.5 * (2 / len(z)) ** 0.5).all()


@pytest.mark.slow
def test_the_prior_may_have_any_mean_and_scale():
    E, a = logistic(3, 2.0, 1.0, mean=-1.0, scale=0.5)
    for one, sign in ((E, 1.0), (~E, -1.0)):  # chains of a complement start at draws of the prior, too
        z = one.latents.sample(500, sampler=latents.LACE(draws=64), seed=0)
        assert max(errors(z @ a, moments(2.0 * sign, sign, float(-direction(3).sum()), 0.5))) < 4


def test_labels_of_each_chain_are_kept_apart():
    side = ce.ClassifierEnergy(lambda z: 8 * z[:, 0], None, latents.latent(torch.nn.Linear(1, 3), 1), labels=2, name="side")
    y = torch.tensor([0, 1]).repeat(50)
    for draws in (0, 32):
        z = side.given(y=y).latents.sample(100, sampler=latents.LACE(draws=draws), seed=0)
        assert ((z[:, 0] > 0) == y.bool()).float().mean() > 0.9
        assert torch.equal(z, side.given(y=y).latents.sample(100, sampler=latents.LACE(draws=draws), seed=0))


def test_a_rare_expression_warns_and_wrong_options_are_refused():
    E, _ = logistic(2, 30.0, -150.0)
    with pytest.warns(ce.SamplingWarning, match="raise `draws`"):
        E.latents.sample(8, sampler=latents.LACE(draws=4), seed=0)
    for options in ({"draws": 3}, {"levels": 0}, {"tolerance": 0.0}, {"scale": torch.ones(3)}):
        refused(OptionError, *options, lambda: E.latents.sample(8, sampler=latents.LACE(**options)))
    prior = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    for start in (prior + 1, 2 * prior, 0 * prior):
        refused(OptionError, "mean or variance of init is", E.latents.sample, 200, sampler=latents.LACE(draws=4), init=start)
    assert E.latents.sample(200, sampler=latents.LACE(draws=0), init=prior + 1, seed=0).shape == (200, 2)
    shifted = latents.LACE(draws=0, mean=torch.ones(2))  # the scale alone is found
    assert torch.equal(E.latents.sample(2, sampler=shifted, trace=True)[1].sampler.mean, torch.ones(2))


@pytest.mark.full
def test_a_uniform_prior_is_drawn_by_the_default_and_refused_by_the_flow():
    base = latents.latent(torch.nn.Linear(2, 3), Uniform(-torch.ones(2), torch.ones(2)))
    right = latents.attribute(base, lambda z: 10 * z[:, 0], "right")
    z = right.latents.sample(500, seed=0)
    assert (z.abs() <= 1).all() and (z[:, 0] > 0).float().mean() > 0.85
    refused(ExpressionError, "none with independent coordinates of shape", right.sample, 8, sampler=latents.LACE(), seed=0)


@pytest.mark.slow
def test_the_flow_passes_the_checks_of_samplers():
    check_sampler(latents.LACE(draws=4, mean=torch.zeros(()), scale=torch.ones(())))


@pytest.mark.slow
def test_bags_become_trousers_and_stay_bright():
    """Codes of shipped clothes, far from trousers; both fail in some pictures without the prior, or at one noise level alone."""
    bag, bright, trousers = (ce.load(f"fashion/{name}") for name in ("bag", "bright", "trousers"))
    last = latents.edit((bag & bright).latents.sample(30, seed=0), trousers, keep=[bright]).last
    assert last.reached.mean() > 0.9 and last.kept["bright"] > 0.9

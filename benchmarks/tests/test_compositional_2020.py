"""The experiments with the 2020 paper: their conditions and their scores, not the quality of any training."""

import pytest
import torch

import composable_energy as ce
from benchmarks.papers.compositional_2020 import implication, partition, recursion, table1
from benchmarks.papers.compositional_2020.claims import Attributes, Claim, Heads, Options, near, random_conditions, share
from composable_energy_image import CodeEnergy, CodeHeads
from composable_energy_scenes import Concepts, weights
from composable_energy_scenes.concepts import CODE, HEADS_WIDTH, SIGMAS

N = 400


def random_attributes(seed: int = 0) -> Attributes:
    random = torch.Generator().manual_seed(seed)
    place, size, light = torch.rand(N, 2, generator=random) * 2 - 1, torch.rand(N, generator=random), torch.randn(N, 2, generator=random)
    return Attributes(place, size, light, torch.randint(3, (N,), generator=random), torch.randint(8, (N,), generator=random))


@pytest.fixture(scope="module")
def concepts(tmp_path_factory) -> Concepts:
    """Untrained concepts."""
    folder, random = tmp_path_factory.mktemp("weights"), torch.Generator().manual_seed(0)
    base = CodeEnergy(64, code=CODE, sigma_min=SIGMAS[0], sigma_max=SIGMAS[1])
    weights.write(base.autoencoder, "autoencoder", folder)
    weights.write(base.net, "base", folder)
    for name, outputs in (("position", 4), ("size", 2), ("color", 8), ("shape", 3)):
        head = CodeHeads(outputs, code=CODE, width=HEADS_WIDTH)
        for parameter in head.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
        weights.write(head, name, folder)
    return Concepts(folder)


def requested(c: dict[str, torch.Tensor], which: int) -> Attributes:
    """Returns the requested attributes: without alternatives, or of the first or the second one."""
    place, color = ((c["position"], c["color"]), (c["position1"], c["color"]), (c["position2"], c["color2"]))[which]
    return Attributes(place, c["size"], torch.zeros(len(color), 2), c["shape"], color)


class TestTable:
    def test_pictures_with_all_that_was_asked_for_score_one_in_every_row(self):
        c = table1.conditions(N, 5)
        for row in table1.ROWS:
            alternatives = [
                row.right(requested(c, which), c) for which in ((1, 2) if len(row.branches) > 1 else (1,) if "1" in row.text else (0,))
            ]
            positive = [torch.stack(list(parts.values())) for parts in alternatives]
            if "~" in row.text:
                names = list(alternatives[0])
                assert [bool(parts.any()) for parts in positive[0]] == ["not" not in name for name in names]
            elif len(row.branches) > 1:
                assert positive[0].sum() == positive[1].sum() == N and positive[0][0].all() and positive[1][1].all()
            else:
                assert positive[0].all() and row.scores(requested(c, 1 if "1" in row.text else 0), c)[list(alternatives[0])[-1]] == 1

    def test_joint_success_is_all_of_a_conjunction_and_any_of_a_disjunction(self):
        c, found = table1.conditions(N, 5), random_attributes()
        rows = {row.text: row for row in table1.ROWS}
        both = rows["position & color"]
        place, color = near(found.position, c["position"]), found.color == c["color"]
        assert both.scores(found, c) == {"position": share(place), "color": share(color), "joint": share(place & color)}
        either = rows["position1 | position2"].scores(found, c)
        assert either["joint"] == pytest.approx(either["first"] + either["second"])  # the two never meet

    def test_conditions_are_those_of_the_paper(self):
        c = table1.conditions(2000, 1)
        assert c["position1"].max() < -0.4 + 1e-6 and c["position1"].min() > -0.9 - 1e-6
        assert c["position2"].min() > 0.4 - 1e-6 and c["position2"].max() < 0.9 + 1e-6
        assert (c["color2"] != c["color"]).all() and set(c["color2"].tolist()) == set(range(8))
        assert torch.equal(c["position"], table1.conditions(2000, 1)["position"])
        assert not torch.equal(c["position"], table1.conditions(2000, 2)["position"])

    @pytest.mark.slow
    def test_each_row_is_one_energy_with_a_condition_for_each_chain(self, concepts):
        c = table1.conditions(6, 0)
        x = torch.randn(6, CODE, generator=torch.Generator().manual_seed(1))
        for row in table1.ROWS:
            energy = row.build(Heads(concepts), c).sharpened(2.0)
            assert energy.grounded and energy(x, sigma=0.5).shape == (6,)
            alone = [row.build(Heads(concepts), {name: value[i : i + 1] for name, value in c.items()}).sharpened(2.0) for i in range(6)]
            expected = torch.cat([one(x[i : i + 1], sigma=0.5) for i, one in enumerate(alone)])
            torch.testing.assert_close(energy(x, sigma=0.5), expected, rtol=1e-4, atol=1e-3)


class TestClaims:
    def test_operators_act_on_the_energy_and_on_its_meaning(self, concepts):
        words, found = recursion.Words(Heads(concepts)), random_attributes()
        red, left = words.red, words.left
        for claim, holds, energy in (
            (red & left, red.holds(found) & left.holds(found), red.energy & left.energy),
            (red | left, red.holds(found) | left.holds(found), red.energy | left.energy),
            (red >> left, ~red.holds(found) | left.holds(found), ~red.energy | left.energy),
            (~red, ~red.holds(found), ~red.energy),
        ):
            x = torch.randn(5, CODE, generator=torch.Generator().manual_seed(1))
            assert torch.equal(claim.holds(found), holds) and 0 < holds.sum() < N
            torch.testing.assert_close(claim.energy.evidence(x, sigma=0.5), energy.evidence(x, sigma=0.5))
        assert (red & ~left).text == "(red & ~left)" and (red & ~left).depth == 2

    def test_expressions_of_expressions_are_neither_certain_nor_impossible(self, concepts):
        claims = recursion.claims(Heads(concepts))
        assert {2, 3} < {claim.depth for claim in claims} and max(claim.depth for claim in claims) >= 6
        for claim in claims:
            assert claim.energy.formula is not None and 0 < claim.holds(random_attributes()).sum() < N

    def test_seven_denials_are_the_eighth_color(self, concepts):
        claims = implication.claims(Options(weights=concepts.folder), random_conditions(5, 0))
        x = torch.randn(5, CODE, generator=torch.Generator().manual_seed(1))
        wanted = claims["P & c8, for comparison"].energy.evidence(x, sigma=0.5)
        for name in ("denied one by one", "denied together"):
            torch.testing.assert_close(claims[name].energy.evidence(x, sigma=0.5), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(claims["modus ponens, c8 & (c8 >> P)"].energy.evidence(x, sigma=0.5), wanted, rtol=1e-4, atol=1e-4)
        assert (claims["by classifiers apart"].energy.evidence(x, sigma=0.5) - wanted).abs().max() > 1e-3
        c, found = random_conditions(N, 0), random_attributes()
        both = near(found.position, c["position"]) & (found.color == c["color"])
        many = implication.claims(Options(weights=concepts.folder), c)
        for name in list(many)[:5]:
            assert torch.equal(many[name].holds(found), both), name


def test_a_constant_is_what_calibration_finds():
    bowl = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(2,))
    mixture = ce.any_of(partition.raised(bowl, 3.0), bowl, weights=[0.3, 0.7])
    first, second = ce.calibrate(mixture, seed=0).log_z
    assert first - second == pytest.approx(-3.0, abs=0.05)


def test_a_claim_is_drawn_and_evaluated(concepts, monkeypatch):
    options = Options(3, 0, concepts.folder)
    found = Attributes(torch.zeros(3, 2), torch.ones(3), torch.zeros(3, 2), torch.tensor([0, 1, 1]), torch.zeros(3, dtype=torch.long))
    monkeypatch.setattr(Options, "evaluate", lambda self, images: found)
    claim = Claim(Heads(concepts).shape(1), lambda v: v.shape == 1, "sphere")
    holds, images, _ = claim.draw(options, levels=2, corrector_steps=0)
    assert holds == pytest.approx(2 / 3) and images.shape == (3, 3, 64, 64)

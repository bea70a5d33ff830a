"""The experiments of the 2020 paper: what they ask for and how they count, not how well anything is trained."""

import common
import implication
import inference
import partition
import pytest
import recursion
import reporting
import table1
import torch
from common import Claim, Heads

import composable_energy as ce
from composable_energy_image import CodeEnergy, CodeHeads
from composable_energy_scenes import Concepts, Verdict, weights
from composable_energy_scenes.concepts import CODE, HEADS_WIDTH, SIGMAS

N = 400


def seen(seed: int = 0) -> Verdict:
    """What a judge may see: anything."""
    random = torch.Generator().manual_seed(seed)
    place, size, light = torch.rand(N, 2, generator=random) * 2 - 1, torch.rand(N, generator=random), torch.randn(N, 2, generator=random)
    return Verdict(place, size, light, torch.randint(3, (N,), generator=random), torch.randint(8, (N,), generator=random))


@pytest.fixture(scope="module")
def concepts(tmp_path_factory) -> Concepts:
    """Concepts that nothing was taught."""
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


def met(c: dict[str, torch.Tensor], which: int) -> Verdict:
    """A judge that sees what was asked for: the first or the second alternative."""
    place, color = ((c["position"], c["color"]), (c["position1"], c["color"]), (c["position2"], c["color2"]))[which]
    return Verdict(place, c["size"], torch.zeros(len(color), 2), c["shape"], color)


class TestTable:
    def test_pictures_with_all_that_was_asked_for_score_one_in_every_row(self):
        c = table1.conditions(N, 5)
        for row in table1.ROWS:
            alternatives = [row.right(met(c, which), c) for which in ((1, 2) if row.branches else (1,) if "1" in row.text else (0,))]
            positive = [torch.stack(list(parts.values())) for parts in alternatives]
            if "~" in row.text:
                names = list(alternatives[0])
                assert [bool(parts.any()) for parts in positive[0]] == ["not" not in name for name in names]
            elif row.branches:
                assert positive[0].sum() == positive[1].sum() == N and positive[0][0].all() and positive[1][1].all()
            else:
                assert positive[0].all() and row.scores(met(c, 1 if "1" in row.text else 0), c)[list(alternatives[0])[-1]] == 1

    def test_joint_success_is_all_of_a_conjunction_and_any_of_a_disjunction(self):
        c, verdict = table1.conditions(N, 5), seen()
        rows = {row.text: row for row in table1.ROWS}
        both = rows["position & color"]
        place, color = common.near(verdict.position, c["position"]), verdict.color == c["color"]
        assert both.scores(verdict, c) == {
            "position": common.share(place),
            "color": common.share(color),
            "joint": common.share(place & color),
        }
        either = rows["position1 | position2"].scores(verdict, c)
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
    def test_operators_act_on_the_energy_and_on_what_is_seen(self, concepts):
        words, verdict = recursion.Words(Heads(concepts)), seen()
        red, left = words.red, words.left
        for claim, holds, energy in (
            (red & left, red.holds(verdict) & left.holds(verdict), red.energy & left.energy),
            (red | left, red.holds(verdict) | left.holds(verdict), red.energy | left.energy),
            (red >> left, ~red.holds(verdict) | left.holds(verdict), ~red.energy | left.energy),
            (~red, ~red.holds(verdict), ~red.energy),
        ):
            x = torch.randn(5, CODE, generator=torch.Generator().manual_seed(1))
            assert torch.equal(claim.holds(verdict), holds) and 0 < holds.sum() < N
            torch.testing.assert_close(claim.energy.evidence(x, sigma=0.5), energy.evidence(x, sigma=0.5))
        assert (red & ~left).text == "(red & ~left)" and (red & ~left).deep == 2

    def test_expressions_of_expressions_are_neither_certain_nor_impossible(self, concepts):
        claims = recursion.claims(Heads(concepts))
        assert {2, 3} < {claim.deep for claim in claims} and max(claim.deep for claim in claims) >= 6
        for claim in claims:
            assert claim.energy.formula is not None and 0 < claim.holds(seen()).sum() < N

    def test_seven_denials_are_the_eighth_color(self, concepts):
        claims = implication.claims(common.Options(weights=concepts.folder), common.asked(5, 0))
        x = torch.randn(5, CODE, generator=torch.Generator().manual_seed(1))
        wanted = claims["P & c8, for comparison"].energy.evidence(x, sigma=0.5)
        for name in ("denied one by one", "denied together"):
            torch.testing.assert_close(claims[name].energy.evidence(x, sigma=0.5), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(claims["modus ponens, c8 & (c8 >> P)"].energy.evidence(x, sigma=0.5), wanted, rtol=1e-4, atol=1e-4)
        assert (claims["by classifiers apart"].energy.evidence(x, sigma=0.5) - wanted).abs().max() > 1e-3
        c, verdict = common.asked(N, 0), seen()
        both = common.near(verdict.position, c["position"]) & (verdict.color == c["color"])
        many = implication.claims(common.Options(weights=concepts.folder), c)
        for name in list(many)[:5]:
            assert torch.equal(many[name].holds(verdict), both), name


def test_evidence_that_is_added_up_is_a_joint_inference(concepts):
    points = inference.grid_of(7)
    z = torch.randn(4, CODE, generator=torch.Generator().manual_seed(1))
    where = concepts.position()
    each = where.infer(z, over={"c": points}).log_probabilities
    for k in range(1, 5):
        together = where.infer(z[:k], over={"c": points}, joint=True)
        torch.testing.assert_close(inference.added_up(each)[k - 1], together.probabilities[0], rtol=1e-4, atol=1e-5)


def test_a_constant_is_what_calibration_finds():
    bowl = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(2,))
    mixture = ce.any_of(partition.raised(bowl, 3.0), bowl, weights=[0.3, 0.7])
    first, second = ce.calibrate(mixture, seed=0).log_z
    assert first - second == pytest.approx(-3.0, abs=0.05)


def test_pictures_stand_side_by_side():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 2, 2)
    sheet = reporting.grid(images, 3)
    assert sheet.shape == (3, 4, 6)
    assert sheet[0, 0].tolist() == [0, 0, 1, 1, 2, 2] and sheet[2, 3].tolist() == [3, 3, 4, 4, 5, 5]


def test_figures_and_tables(capsys, tmp_path, monkeypatch):
    reporting.show("Title", [{"row": "a", "value": 0.98765}, {"row": "b", "more": [0.5, 2.0]}])
    lines = ["Title", "row  value  more", "---  -----  ----------", "a    .988", "b           .500 2.000"]
    assert capsys.readouterr().out.splitlines()[1:] == lines
    monkeypatch.setattr(reporting, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(reporting, "PICTURES", tmp_path / "pictures")
    reporting.write("some", {"a": (0.1234567, {"b": 1})}, torch.rand(3, 4, 6))
    assert (tmp_path / "results" / "some.json").read_text().split() == ["{", '"a":', "[", "0.12346,", "{", '"b":', "1", "}", "]", "}"]
    assert (tmp_path / "pictures" / "some.png").stat().st_size > 50


def test_a_claim_is_drawn_and_judged(concepts, monkeypatch):
    options = common.Options(3, 0, concepts.folder)
    verdict = Verdict(torch.zeros(3, 2), torch.ones(3), torch.zeros(3, 2), torch.tensor([0, 1, 1]), torch.zeros(3, dtype=torch.long))
    monkeypatch.setattr(common.Options, "judged", lambda self, images: verdict)
    claim = Claim(Heads(concepts).shape(1), lambda v: v.shape == 1, "sphere")
    share, images, _ = claim.drawn(options, levels=2, corrector_steps=0)
    assert share == pytest.approx(2 / 3) and images.shape == (3, 3, 64, 64)

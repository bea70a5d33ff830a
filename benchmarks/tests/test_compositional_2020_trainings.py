"""The trainings with the 2020 paper: training and test pairs, codes of place and appearance, digests of weights, labels of sets."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.papers.compositional_2020 import continual, extrapolation
from benchmarks.papers.compositional_2020.claims import Attributes, outlines
from benchmarks.papers.compositional_2020.extrapolation import WHAT, WHERE, WhereAndWhat, silhouettes
from composable_energy_scenes import COLORS, KINDS


def draw_disc(column: float, row: float, radius: float, color: tuple[float, float, float] = (0.9, 0.1, 0.1)) -> torch.Tensor:
    """Returns a picture of a disc with soft edges, places in pixels from the upper left corner."""
    at = torch.arange(64) + 0.5
    cover = (radius + 0.5 - torch.hypot(at[None] - column, at[:, None] - row)).clamp(0, 1)
    return torch.lerp(torch.full((3, 1, 1), 0.4), torch.tensor(color).view(3, 1, 1), cover)[None]


@pytest.mark.parametrize(("ratio", "count", "columns"), [(0.01, 5, 1), (0.1, 41, 3), (1.0, 400, 20)])
def test_a_ratio_selects_the_first_positions_column_by_column(ratio: float, count: int, columns: int):
    places = extrapolation.POSITIONS[extrapolation.positions_with_all_sizes(ratio)]
    assert len(places) == count and len(np.unique(places[:, 0])) == columns
    assert places[0].tolist() == [-1, -1] and (np.diff(places[:, 0]) >= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("ratio", extrapolation.RATIOS)
def test_no_training_pair_is_a_test_pair_below_a_ratio_of_1(ratio: float):
    shown = extrapolation.training_pairs(ratio)
    assert set(shown["position"][:, 0]) == set(range(400)) and set(shown["position"][:, 1]) == {19}
    assert set(shown["size"][:, 0]) == set(extrapolation.positions_with_all_sizes(ratio).tolist())
    known = {tuple(pair) for pairs in shown.values() for pair in pairs.tolist()}
    wanted = {tuple(pair) for pair in extrapolation.test_pairs(ratio).tolist()}
    count = len(extrapolation.positions_with_all_sizes(ratio))
    assert len(known) == 19 * count + 400
    assert (len(wanted), len(wanted & known)) == ((8000, 8000) if ratio == 1 else (19 * (400 - count), 0))


def test_sizes_of_a_ratio_are_independent_of_positions():
    pairs = extrapolation.training_pairs(0.1)["size"]
    counts = np.zeros((400, 20), int)
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    assert np.ptp(counts[extrapolation.positions_with_all_sizes(0.1)]) <= 1


def test_parts_of_a_code_have_energies_of_their_own():
    decoder = WhereAndWhat()
    where, what = (extrapolation.Part(slice(0, WHERE), decoder, "where"), extrapolation.Part(slice(WHERE, None), decoder, "what"))
    torch.manual_seed(0)
    for part in (where, what):
        nn.init.normal_(part.net.net.write.weight)
    a, b = torch.randn(2, 5, WHERE + WHAT)
    mixed = torch.cat([a[:, :WHERE], b[:, WHERE:]], 1)
    sigma = 0.3
    torch.testing.assert_close((where & what)(mixed, sigma=sigma), where(a, sigma=sigma) + what(b, sigma=sigma))
    assert not torch.allclose(where(a, sigma=sigma), where(b, sigma=sigma))


def test_silhouettes_are_the_middle_and_the_foot_of_a_disc():
    column, row = silhouettes(draw_disc(21.3, 30.7, 9.0))[0].add(1).mul(32).tolist()
    assert column == pytest.approx(21.3, abs=0.05)
    edge = 0.4  # a pixel counts in full from a fifth of the contrast on
    assert row == pytest.approx(30.7 + 0.687 * (9.0 + edge), abs=0.1)  # nine tenths of a disc lie above .687 radii below its middle


def test_silhouettes_ignore_colors():
    red, blue = (silhouettes(draw_disc(40, 20, 6, color)) for color in ((0.9, 0.1, 0.1), (0.1, 0.1, 0.9)))
    torch.testing.assert_close(red, blue)


def test_codes_move_the_painted_object():
    """The same thing four pixels to the right and two down is the same picture, moved."""
    torch.manual_seed(0)
    coder = WhereAndWhat().eval()
    coder.set_statistics(torch.rand(10, WHERE))
    code = torch.zeros(1, WHERE + WHAT)
    code[:, WHERE:] = torch.randn(WHAT)
    moved = code.clone()
    moved[:, :WHERE] += torch.tensor([4.0, 2.0]) / 32 / coder.spread
    with torch.no_grad():
        before, after = coder(code), coder(moved)
    assert before.std() > 0.005
    torch.testing.assert_close(after[:, :, 2:, 4:], before[:, :, :-2, :-4], atol=2e-5, rtol=0)


def test_encoding_follows_a_moved_picture():
    coder = WhereAndWhat().eval()
    with torch.no_grad():
        a, b = (coder.encode(draw_disc(30 + shift, 32, 7)) for shift in (0, 5))
    torch.testing.assert_close(b[:, 0] - a[:, 0], torch.tensor([10 / 64]), atol=1e-5, rtol=0)
    torch.testing.assert_close(b[:, 1:], a[:, 1:], atol=1e-4, rtol=0)


def test_normalized_codes_have_unit_variance():
    torch.manual_seed(0)
    coder = WhereAndWhat().eval()
    with torch.no_grad():
        for parameter in coder.read.parameters():
            parameter.mul_(4)  # so that an untrained encoder has differences that are large beside the layer's epsilon
    pictures = torch.cat([draw_disc(20 + i, 30 + i % 7, 4 + i % 5) for i in range(24)])
    coder.normalize_what(pictures.split(10))
    with torch.no_grad():
        what = coder.encode(pictures)[:, WHERE:]
    torch.testing.assert_close(what.mean(0), torch.zeros(WHAT), atol=1e-3, rtol=0)
    torch.testing.assert_close(what.std(0), torch.ones(WHAT), atol=1e-2, rtol=0)


def test_a_head_that_changes_other_weights_is_refused():
    base, net = nn.Linear(3, 3), nn.Linear(3, 3)

    class Changing:
        def __init__(self, changed):
            self.base, self.changed = base, changed

        def head(self, concept):
            with torch.no_grad():
                weight = next(self.changed.parameters())
                weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
            return self.changed

    heads = {"position": net}
    with pytest.raises(RuntimeError, match="changed weights of position"):
        continual.add_head(Changing(net), heads, "shape")
    heads = {"position": net}
    continual.add_head(Changing(nn.Linear(3, 3)), heads, "shape")
    assert set(heads) == {"position", "shape"}


def test_each_set_varies_in_its_label_and_in_less_than_the_next():
    sets = {concept: continual.labels_of(concept, 200) for concept in continual.CONCEPTS}
    varied = {concept: {name for name in continual.CONCEPTS if np.ptp(labels[name], 0).any()} for concept, labels in sets.items()}
    assert varied == {"position": {"position"}, "shape": {"position", "shape"}, "color": {"position", "shape", "color"}}
    assert set(sets["shape"]["color"]) == set(sets["position"]["color"]) == {COLORS.index("magenta")}
    assert set(sets["position"]["shape"]) == {KINDS.index("box")}


def test_outlines_ignore_colors():
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(outlines(pictures[:, [2, 0, 1]]), outlines(pictures))
    assert outlines(pictures).shape == (2, 1, 64, 64)


def test_the_condition_of_the_one_network_is_zero_for_unknown_labels():
    some = continual.condition_vector({"shape": torch.tensor([2, 0])})
    assert some.tolist() == [[0, 0, 0, 0, 1] + [0] * 8, [0, 0, 1, 0, 0] + [0] * 8]
    full = continual.condition_vector({"position": torch.tensor([[0.5, -1.0]]), "shape": torch.tensor([1]), "color": torch.tensor([7])})
    assert full.tolist() == [[0.5, -1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]]


def test_scores_count_pictures_with_all_attributes():
    known = Attributes(
        torch.tensor([[0.0, 0.0], [0.9, 0.0]]), torch.zeros(2), torch.zeros(2, 2), shape=torch.tensor([1, 1]), color=torch.tensor([0, 3])
    )
    wanted = {"position": torch.tensor([[0.3, -0.3], [0.3, 0.0]]), "shape": torch.tensor([1, 1]), "color": torch.tensor([5, 3])}
    assert continual.scores(known, wanted, ("position", "shape")) == {"position": 0.5, "shape": 1.0, "joint": 0.5}
    assert continual.scores(known, wanted, continual.CONCEPTS)["joint"] == 0.0

"""The experiments with two worlds and two styles: pictures at night, their judge, and objects of two models in one picture."""

import numpy as np
import pytest
import torch

import composable_energy as ce
from benchmarks.papers.comet_2021.crop_classifier import CropClassifier, LabelledScenes, pad, read_classifier, write_classifier
from benchmarks.papers.comet_2021.joined_objects import GAP, separate_pairs
from benchmarks.papers.comet_2021.night import at_night, draw_nights, style
from benchmarks.papers.comet_2021.recombination import Pairs
from benchmarks.papers.comet_2021.style_faces import draw_styles, read_pairs, restyle, sketch
from benchmarks.papers.comet_2021.styles import classify_style, mix_styles, of_two_styles
from benchmarks.papers.comet_2021.two_worlds import join_worlds, render_pairs
from benchmarks.papers.comet_2021.worlds import Room
from composable_energy_faces.draw import draw
from composable_energy_scenes import COLORS, KINDS, PALETTE, TOYS
from composable_energy_scenes.toys import OUTLINES

SIZE = 64


def labelled(shapes: tuple[str, ...], n: int, seed: int) -> LabelledScenes:
    """Returns pictures of two objects each."""
    scenes = ce.get("world", "objects", size=SIZE, count=(2, 2), sizes=(0.16, 0.26), shapes=shapes).draw(n, seed=seed, masks=True)
    shape, color = (torch.from_numpy(scenes.labels[name]).long() for name in ("shape", "color"))
    assert scenes.masks is not None
    return LabelledScenes(torch.from_numpy(scenes.images).float() / 255, torch.from_numpy(scenes.masks).long(), shape, color, scenes.labels)


def test_nights_are_dark_and_blue_and_keep_colors():
    colors = torch.from_numpy(PALETTE).float()[:, :, None, None].expand(-1, -1, 8, 8)
    night = at_night(colors)[:, :, 4, 4]
    assert (night.mean(1) <= colors[:, :, 0, 0].mean(1) + 0.02).all()
    assert torch.cdist(night, night).add(torch.eye(len(night))).min() > 0.15  # colors remain different
    floor = at_night(torch.full((1, 3, 8, 8), 0.37))[0, :, 4, 4]
    assert floor.max() < 0.3 and floor.argmax() == 2


def test_half_of_the_pictures_are_at_night():
    nights, x = draw_nights(400), torch.rand(400, 3, 8, 8)
    assert 160 < nights.sum() < 240 and torch.equal(nights, draw_nights(400))
    styled = style(x, nights)
    assert torch.equal(styled[~nights], x[~nights]) and torch.equal(styled[nights], at_night(x[nights]))


def test_objects_and_ground_of_the_judges_pictures_have_styles_of_their_own():
    day = labelled(KINDS, 60, 1)
    mixed = mix_styles(day)
    at_noon, at_midnight = ((mixed.images == some).all(1) for some in (day.images, at_night(day.images)))
    for inside in (day.masks > 0, day.masks == 0):
        whole = [(some | ~inside).flatten(1).all(1) for some in (at_noon, at_midnight)]
        assert (whole[0] ^ whole[1]).all() and whole[1].float().mean() == pytest.approx(0.5, abs=0.2)
    night = (at_midnight | (day.masks == 0)).flatten(1).all(1)
    assert torch.equal(mixed.color, day.color + len(COLORS) * night[:, None])


def test_the_judge_reads_shape_color_and_style_at_once(tmp_path):
    judge = CropClassifier(3, 2 * len(COLORS), 15)
    for parameter in judge.parameters():
        torch.nn.init.zeros_(parameter)
    bias = dict(judge.named_parameters())["net.9.bias"].data
    bias[1], bias[4 + len(COLORS) + 2] = 1.0, 1.0  # always the second shape, the third color, at night
    write_classifier(judge, tmp_path / "judge.pt")
    judge, pictures = read_classifier(tmp_path / "judge.pt"), torch.rand(4, 3, 32, 32)
    rows, places = torch.arange(4), torch.full((4, 2), 16)
    assert pad(pictures, judge.margin).shape[-1] == 62
    shape, color, night = torch.tensor([1, 1, 0, 1]), torch.tensor([2, 1, 2, 2]), torch.tensor([True, True, True, False])
    found = classify_style(judge, pictures, rows, places, shape, color, night)
    assert found == {"shape": 0.75, "color": 0.75, "style": 0.75, "all": 0.25}


def test_pairs_of_two_styles_differ_in_style():
    pairs = Pairs(torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 0]), torch.tensor([0, 1, 0, 1]), torch.tensor([1, 1, 0, 0]))
    some = of_two_styles(pairs, torch.tensor([True, True, False, True]), 1)
    assert (some.a.tolist(), some.b.tolist(), some.of_a.tolist(), some.of_b.tolist()) == ([1], [2], [1], [1])


def test_solids_and_toys_of_pairs_stand_apart_and_each_toy_picture_is_in_one_pair():
    solids, toys = labelled(KINDS, 30, 3).labels, labelled(TOYS, 30, 4).labels
    pairs = separate_pairs(solids, 8, toys)
    assert len(pairs) == 8 and len(set(pairs[:, 1].tolist())) == 8
    for a, b in pairs.tolist():
        between = np.linalg.norm(solids["position"][a][:, None] - toys["position"][b], axis=2)
        reach = [some["size"][i] * np.where(OUTLINES[some["shape"][i]] == 0, np.sqrt(2), 1) for some, i in ((solids, a), (toys, b))]
        assert (between > reach[0][:, None] + reach[1] + GAP).all()


def test_renders_of_a_pair_have_the_solids_of_one_picture_and_the_toys_of_the_other():
    pairs = render_pairs(labelled(KINDS, 20, 3), labelled(TOYS, 20, 4), 3)
    assert pairs.rendered.shape == pairs.solids.shape and pairs.places.shape == pairs.pixels.shape == (len(pairs.solids), 4, 2)
    assert (pairs.shape[:, :2] < len(KINDS)).all() and (pairs.shape[:, 2:] >= len(KINDS)).all()
    for row in range(len(pairs.solids)):
        changed = (pairs.rendered[row] - pairs.solids[row]).abs().amax(0)
        for down, right in pairs.pixels[row, 2:].tolist():
            assert changed[down, right] > 0.05  # a toy stands there
        assert (changed > 0.05).float().mean() < 0.3


def test_objects_of_two_models_share_the_ground_of_the_first():
    torch.manual_seed(0)
    options = {"size": 16, "window": 8, "seen": 16, "filters": 16, "encoder_filters": 8}
    solids, toys = (ce.get("encoder", "comet-window", **options).eval() for _ in range(2))
    x, y = torch.rand(2, 2, 3, 16, 16)
    both = join_worlds(solids, toys, x, y)
    weights = torch.cat([solids.energy.decode_targets(solids.encode(x))[1], toys.energy.decode_targets(toys.encode(y)[:, 1:])[1]], 1)
    pictures = torch.cat([solids.energy.decode_targets(solids.encode(x))[0], toys.energy.decode_targets(toys.encode(y)[:, 1:])[0]], 1)
    torch.testing.assert_close(both, (weights.softmax(1) * pictures).sum(1).clamp(0, 1))
    only_solids = solids.decode(solids.encode(x))
    assert (both - only_solids).abs().max() > 1e-4


def test_a_sketch_has_lines_at_edges_on_grey_paper():
    x = torch.full((1, 3, 8, 8), 0.5)
    x[:, :, :, 4:] = torch.tensor([0.9, 0.2, 0.3])[:, None, None]
    found = sketch(x)
    assert found[0, 0, :, 3].max() < 0.7 * found[0, 0, :, :3].min() and (found <= 1).all()
    assert (found.amax(1) - found.amin(1)).max() < 0.11  # no colors but that of the paper


def test_half_of_the_faces_are_sketches_and_labelled():
    drawn, none = draw(60, seed=0, size=16), torch.empty(0)
    faces = Room(drawn.images, drawn.attributes.float(), drawn.images[:20], drawn.attributes[:20].float(), none, none)
    both = draw_styles(faces)
    sketched = both.train_factors[:, -1] > 0.5
    assert 15 < sketched.sum() < 45 and torch.equal(both.train_factors[:, :-1], faces.train_factors)
    assert torch.equal(both.train[~sketched], faces.train[~sketched])
    torch.testing.assert_close(both.train[sketched], sketch(faces.train[sketched]))


def test_pairs_of_faces_are_read_where_they_differ():
    a = torch.tensor([[1.0, 0, 0, 1, 0, 1]]).expand(2, -1)
    b = torch.tensor([[0.0, 1, 1, 0, 1, 0], [0.0, 1, 1, 0, 0, 0]])  # the second agrees with A in the last attribute
    found = read_pairs(torch.nn.Flatten(), torch.stack([a, b], 1)[:, 0][:, None, None], a, b)
    assert found["style"] == found["attributes"] == found["old"] == 1
    mixed = torch.stack([a[0], b[1]])[:, None, None]
    found = read_pairs(torch.nn.Flatten(), mixed, a, b)
    assert found["style"] == found["male"] == 0.5 and found["old"] == 1


def test_codes_of_one_style_move_to_the_other_by_the_difference_of_their_means():
    known, apart = torch.randn(400, 4, 5, generator=torch.Generator().manual_seed(0)), 8 * torch.ones(4, 5)
    known[::2] += apart
    others = restyle(known[0:40:2], known[1:40:2], known)
    torch.testing.assert_close(others, known[0:40:2] - apart, atol=0.5, rtol=0)
    torch.testing.assert_close(restyle(known[0:40:2], known[40:80:2], known), known[0:40:2])

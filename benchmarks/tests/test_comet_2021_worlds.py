"""The experiments with two worlds and two styles: pictures at night, their judge, and objects of two models in one picture."""

import numpy as np
import torch

import composable_energy as ce
from benchmarks.papers.comet_2021.two_worlds import render_pairs
from benchmarks.papers.comet_2021.window_objects import GAP, join_objects, separate_pairs
from benchmarks.papers.comet_2021.worlds import Scenes
from composable_energy_scenes import KINDS, TOYS
from composable_energy_scenes.objects import OUTLINES

SIZE = 64


def labelled(shapes: tuple[str, ...], n: int, seed: int) -> Scenes:
    """Returns pictures of two objects each."""
    scenes = ce.get("world", "objects", size=SIZE, count=(2, 2), sizes=(0.16, 0.26), shapes=shapes).draw(n, seed=seed, masks=True)
    shape, color = (torch.from_numpy(scenes.labels[name]).long() for name in ("shape", "color"))
    assert scenes.masks is not None
    return Scenes(torch.from_numpy(scenes.images).float() / 255, torch.from_numpy(scenes.masks).long(), shape, color, scenes.labels)


def test_solids_and_toys_of_pairs_stand_apart_and_each_toy_picture_is_in_one_pair():
    solids, toys = labelled(KINDS, 30, 3).labels, labelled(TOYS, 30, 4).labels
    pairs = separate_pairs(solids, 8, toys)
    assert len(pairs) == 8 and len(set(pairs[:, 1].tolist())) == 8
    for a, b in pairs.tolist():
        between = np.linalg.norm(solids["position"][a][:, None] - toys["position"][b], axis=2)
        reach = [some["size"][i] * np.where(OUTLINES[some["shape"][i]] == 0, np.sqrt(2), 1) for some, i in ((solids, a), (toys, b))]
        assert (between > reach[0][:, None] + reach[1] + GAP).all()


def test_renders_of_a_pair_have_the_solids_of_one_picture_and_more():
    pairs = render_pairs(labelled(KINDS, 20, 3), labelled(TOYS, 20, 4), 3)
    assert pairs.rendered.shape == pairs.first.shape and pairs.places.shape == (len(pairs.first), 4, 2)
    changed = ((pairs.rendered - pairs.first).abs().amax(1) > 0.05).float().mean((1, 2))
    assert (changed > 0).all() and (changed < 0.3).all()  # two toys stand there, and nothing else changed


def test_objects_of_two_models_share_the_ground_of_the_first():
    torch.manual_seed(0)
    options = {"size": 16, "window": 8, "seen": 16, "filters": 16, "encoder_filters": 8}
    solids, toys = (ce.get("encoder", "comet-window", **options).eval() for _ in range(2))
    x, y = torch.rand(2, 2, 3, 16, 16)
    both = join_objects(solids, x, y, toys)
    weights = torch.cat([solids.energy.decode_targets(solids.encode(x))[1], toys.energy.decode_targets(toys.encode(y)[:, 1:])[1]], 1)
    pictures = torch.cat([solids.energy.decode_targets(solids.encode(x))[0], toys.energy.decode_targets(toys.encode(y)[:, 1:])[0]], 1)
    torch.testing.assert_close(both, (weights.softmax(1) * pictures).sum(1).clamp(0, 1))
    only_solids = solids.decode(solids.encode(x))
    assert (both - only_solids).abs().max() > 1e-4

"""`ce.viz.forces`: what is drawn are the negative gradients of the parts, on one scale; bad input is refused."""

from __future__ import annotations

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError, ShapeError

pytest.importorskip("matplotlib", reason="needs the extra viz")


def towards(place: float, name: str) -> ce.Energy:
    return ce.as_energy(lambda x: (x - place).square().flatten(1).sum(1), name=name)


LEFT, RIGHT = towards(-1.0, "left"), towards(1.0, "right")


def arrows_of(figure):
    return figure.axes[0].collections


def tiles_of(figure, columns: int, size: int = 4):
    """Returns the drawn pictures, with shape (rows, columns, size, size, 3)."""
    sheet = torch.nn.functional.pad(torch.as_tensor(figure.axes[0].images[0].get_array()), (0, 0, 0, 1, 0, 1))
    return sheet.unflatten(1, (columns, size + 1)).unflatten(0, (-1, size + 1))[:, :size, :, :size].permute(0, 2, 1, 3, 4)


def test_arrows_are_the_negative_gradients_of_the_terms():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    arrows = arrows_of(ce.viz.forces(LEFT & RIGHT, x))
    assert [one.get_label() for one in arrows] == ["left", "right"]
    for one, place in zip(arrows, (-1.0, 1.0), strict=True):
        drawn = torch.stack([torch.as_tensor(one.U), torch.as_tensor(one.V)], 1)
        torch.testing.assert_close(drawn, (2 * (place - x)).double())
    assert arrows[0].scale == arrows[1].scale


def test_pictures_show_the_force_on_each_pixel_around_grey():
    x = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    tiles = tiles_of(ce.viz.forces([towards(0.0, "dark"), towards(1.0, "bright")], x), 3)
    torch.testing.assert_close(tiles[:, 0], x.permute(0, 2, 3, 1).double())
    assert (tiles[:, 1] <= 0.5).all() and (tiles[:, 2] >= 0.5).all()
    pulls = torch.stack([-2 * x, 2 - 2 * x]).permute(1, 0, 3, 4, 2).double()
    shown = (tiles[:, 1:] - 0.5).abs() < 0.499  # not clipped
    ratio = (tiles[:, 1:] - 0.5)[shown] / pulls[shown]
    assert shown.double().mean() > 0.9 and ratio.std() < 1e-6 * ratio.mean()


def test_parts_with_the_same_text_are_numbered_and_labels_replace_names():
    normal = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0), name="normal")
    x = torch.zeros(1, 2)
    assert [one.get_label() for one in arrows_of(ce.viz.forces([normal, normal], x))] == ["0: normal", "1: normal"]
    assert [one.get_label() for one in arrows_of(ce.viz.forces([normal, normal], x, labels=["a", "b"]))] == ["a", "b"]


def test_a_file_is_written_and_given_axes_are_used(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    assert ce.viz.forces(LEFT, window=(-1, 1), ax=figure.subplots(), path=tmp_path / "a.png") is figure
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_refused():
    x = torch.zeros(2, 2)
    with pytest.raises(OptionError, match="give points, or window"):
        ce.viz.forces(LEFT)
    with pytest.raises(OptionError, match="two increasing numbers"):
        ce.viz.forces(LEFT, window=(2, -2))
    with pytest.raises(ExpressionError, match="no parts"):
        ce.viz.forces([], x)
    for wrong in (torch.zeros(2, 3), torch.zeros(0, 2), torch.zeros(3, 8, 8), [0.0, 0.0]):
        with pytest.raises(ShapeError, match="draws points of shape"):
            ce.viz.forces(LEFT, wrong)
    for labels in ("ab", ["a"]):
        with pytest.raises(ShapeError, match="one for each of 2 parts"):
            ce.viz.forces(LEFT & RIGHT, x, labels=labels)
    steep = ce.as_energy(lambda x: x.abs().sqrt().sum(1), name="steep")
    with pytest.raises(ExpressionError, match="not finite at 2 of 2"):
        ce.viz.forces(steep, x)

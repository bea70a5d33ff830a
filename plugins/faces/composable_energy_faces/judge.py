r"""Scores pictures of faces with the judge, an image classifier that was trained on other faces and is not used in sampling.

- *Accuracy*: the share of pictures with the requested attributes, according to the judge.
- *Frechet distance* of two sets of pictures: that of Gaussians with the means and covariances of the judge's features,
  $|\mu_1 - \mu_2|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1 C_2)^{1/2})$ (Heusel et al., 2017, with our own features). It tends to 0 for equal
  distributions and many pictures; compare it with the distance of two drawn sets of the same size.
- *Nearest distance*: the root mean square distance of a picture to the most similar other one of its set; copies indicate a collapse.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy_faces.draw import ATTRIBUTES, HAIR_COLORS, DrawnFaces, one_thread
from composable_energy_faces.networks import SIZE, Judge
from composable_energy_faces.weights import FOLDER, read
from composable_energy_image.metrics import check_pictures, features_of, frechet_distance

__all__ = ["Verdict", "accuracy", "features", "frechet_distance", "judge", "load_judge", "nearest_distances"]


@dataclass(frozen=True)
class Verdict:
    """The judge's predictions for pictures.

    Attributes:
        attributes: Whether each picture has each of `ATTRIBUTES`, with shape $(B, 5)$.
        hair: The index of the hair color in `HAIR_COLORS`, with shape $(B,)$.
    """

    attributes: Tensor
    hair: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """Returns whether each picture has an attribute, such as `male` or `hair=red`, with shape $(B,)$.

        Raises:
            OptionError: There is no such attribute.
        """
        if name in ATTRIBUTES:
            return self.attributes[:, ATTRIBUTES.index(name)]
        color = name.removeprefix("hair=")
        if color in HAIR_COLORS and color != name:
            return self.hair == HAIR_COLORS.index(color)
        known = ", ".join((*ATTRIBUTES, *(f"hair={color}" for color in HAIR_COLORS)))
        raise OptionError(f"The judge does not predict {name!r}; it predicts {known}.")


@cache
def load_judge() -> Judge:
    """Returns the trained judge, which is loaded once."""
    return read(Judge(), "judge", FOLDER)


@one_thread()
@torch.no_grad()
def judge(images: Tensor, network: Judge | None = None) -> Verdict:
    """Returns the predictions for pictures in [0, 1] of a judge; that of the package if None."""
    network = network or load_judge()
    logits = features_of(network, check_pictures("The judge", network, images, (3, SIZE, SIZE)))
    return Verdict(logits[:, :5] > 0, logits[:, 5:].argmax(1))


def accuracy(verdict: Verdict, faces: DrawnFaces) -> dict[str, float]:
    """Returns the share of faces for which a verdict is right, by attribute."""
    right = (verdict.attributes == (faces.attributes > 0.5)).float().mean(0).tolist()
    return dict(zip(ATTRIBUTES, right, strict=True)) | {"hair": float((verdict.hair == faces.hair).float().mean())}


@one_thread()
@torch.no_grad()
def features(images: Tensor, network: Judge | None = None) -> Tensor:
    """Returns the judge's pooled features, with shape $(B, 96)$, of pictures with shape $(B, 3, 64, 64)$."""
    network = network or load_judge()
    return features_of(network.features, check_pictures("The judge", network, images, (3, SIZE, SIZE)))


@one_thread()
def nearest_distances(images: Tensor) -> Tensor:
    """Returns the distance of each picture to its nearest neighbor, with shape $(B,)$, for pictures with shape $(B, 3, H, H)$."""
    if len(images) < 2:
        raise ShapeError(f"Nearest distances are those to other pictures, of two or more; got {len(images)}.")
    flat = images.flatten(1)
    distances = torch.cdist(flat, flat, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    return (flat - flat[distances.argmin(1)]).square().mean(1).sqrt()  # found by fast matrix products; measured again exactly

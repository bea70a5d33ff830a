"""Trains the conditional energy E(x | c) of `benchmarks.faces`, on the codes of the shipped autoencoder."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from tqdm import tqdm

from composable_energy.sampling import Noise
from composable_energy_faces.draw import ATTRIBUTES, HAIR_COLORS
from composable_energy_faces.energies import Faces
from composable_energy_faces.networks import CODE, SIGMA_MAX, SIGMA_MIN
from composable_energy_faces.train import TRAINING_FACES, TrainingRun
from composable_energy_image.code_energy import CodeNetwork
from composable_energy_image.network_training import scaled, train_network
from composable_energy_training import Batch, DenoisingScoreMatching, Loss, Objective

_STEPS = 20_000


def train_conditional(run: TrainingRun) -> CodeNetwork:
    """Trains a conditional energy with the size, codes and steps of the base, or loads it if it is trained already."""
    data = _encode_faces(run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CodeNetwork(CODE, conditions=len(ATTRIBUTES) + len(HAIR_COLORS))
    steps, folder = scaled(_STEPS, run.effort), run.folder / "conditional"
    train_network(folder, network, OneAttributeMatching(), data, steps=steps, batch_size=256, rate=2e-3, ema=0.999, progress=True)
    return network


class OneAttributeMatching(Objective):
    """Denoising score matching, conditioned on one random attribute of each face, or none for a quarter of them."""

    def __init__(self) -> None:
        self._scores = DenoisingScoreMatching(SIGMA_MIN, SIGMA_MAX)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        coins = torch.stack([batch.labels[name] for name in ATTRIBUTES], 1) * 2 - 1
        truth = torch.cat([coins, one_hot(batch.labels["hair"], len(HAIR_COLORS))], 1).to(batch.x)
        return self._scores.loss(model.given(y=keep_one_attribute(truth, batch.noise)), batch)  # pyright: ignore[reportCallIssue]


def keep_one_attribute(truth: Tensor, noise: Noise) -> Tensor:
    """Sets all but one random attribute of each face to zero, and all for a quarter of the faces."""
    pick = (noise.child("attribute").uniform(truth) * 6).long().clamp(max=5)[:, None]
    column = torch.tensor([[0, 1, 2, 3, 4, 5, 5, 5, 5]], device=truth.device)
    keep = noise.child("told").uniform(truth)[:, None] < 0.75  # the label keys the random numbers
    return truth * ((pick == column) & keep)


@torch.no_grad()
def _encode_faces(run: TrainingRun) -> tuple[Tensor, Mapping[str, Tensor]]:
    faces, coder = run.draw_faces("train", TRAINING_FACES), Faces().load(None).decoder
    codes = [coder.encode(faces.images(part)) for part in tqdm(torch.arange(len(faces)).split(500), desc="codes")]  # pyright: ignore
    return torch.cat(codes), {name: some.values for name, some in faces.labels.items()}

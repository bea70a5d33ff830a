r"""Trains a pipeline of diffusers on drawn faces of 32 pixels, and the judge of their size, reproducibly from seeds.

    python -m composable_energy_small_faces.train --out FOLDER [--effort 1.0] [--install]

The network is a `UNet2DModel` that takes a class; it predicts $v$ under the cosine schedule of 1,000 steps. A face counts for one of its
five attributes, chosen at random, or for the class of any face in a fifth of all cases. It takes three quarters of an hour of one core.
The command can be stopped at any time, and resumes when called again. `--install` copies the pipeline and the judge into the package.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.files import replace_file
from composable_energy.options import import_extra
from composable_energy.sampling import Noise
from composable_energy_faces.data import SEEDS, draw_to
from composable_energy_faces.draw import ATTRIBUTES, VALUES, draw
from composable_energy_faces.judge import accuracy, load_judge
from composable_energy_faces.networks import Judge
from composable_energy_image.data import Pictures
from composable_energy_image.label_columns import label_loss
from composable_energy_image.network_training import read_costs, run_command, scaled, train_network
from composable_energy_image.weights import write_weights
from composable_energy_small_faces.pipeline import ANY_FACE, FOLDER, PIPELINE, judge_small, shrink
from composable_energy_training import Batch, Loss, Monitor, Objective

_FACES, _JUDGE_FACES, _TEST_FACES = 40_000, 16_000, 2_000
_STEPS, _JUDGE_STEPS = 5_000, 800
_WITHOUT_CLASS = 0.2


def small_unet() -> Any:
    """Returns the network: a `UNet2DModel` of diffusers with 1.8 million weights."""
    diffusers = import_extra("diffusers", "diffusers")
    return diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=32,
        num_class_embeds=ANY_FACE + 1,
    )


def small_scheduler() -> Any:
    """Returns the scheduler: the cosine schedule, with predictions of $v$."""
    diffusers = import_extra("diffusers", "diffusers")
    return diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")


class ClassDiffusion(Objective):
    r"""The squared error of $v = a\, \epsilon - s\, x_0$ at steps of the schedule that are spread evenly over each batch."""

    def __init__(self) -> None:
        self._scheduler = small_scheduler()

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        count = self._scheduler.config.num_train_timesteps
        clean, rows = batch.x * 2 - 1, torch.tensor(list(batch.noise.chains))
        steps = ((rows + batch.noise.child("step").uniform(batch.x)) * count / len(rows)).long().clamp(max=count - 1)
        noise = batch.noise.child("noise").normal(clean)
        target = self._scheduler.get_velocity(clean, noise, steps)
        noisy = self._scheduler.add_noise(clean, noise, steps)
        found = model(noisy, steps, class_labels=random_classes(batch.labels, batch.noise), return_dict=False)[0]
        return Loss((found.float() - target).square().mean())


def random_classes(labels: Any, noise: Noise) -> Tensor:
    """Returns a class of each face: that of one of its attributes, or that of any face."""
    values = torch.stack([labels[name] for name in ATTRIBUTES], 1)
    like = values.float()
    column = (noise.child("attribute").uniform(like) * len(ATTRIBUTES)).long().clamp(max=len(ATTRIBUTES) - 1)
    chosen = 2 * column + 1 - values.gather(1, column[:, None])[:, 0]
    return torch.where(noise.child("class").uniform(like) < _WITHOUT_CLASS, ANY_FACE, chosen)


class _SmallAttributes(Objective):
    """The judge's objective: the cross entropy of the attributes of small pictures with a little noise, doubled in size."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        level = 0.06 * batch.noise.child("level").uniform(batch.x)
        x = batch.x + level[:, None, None, None] * batch.noise.child("noise").normal(batch.x)
        return Loss(label_loss(model(nn.functional.interpolate(x.clamp(0, 1), scale_factor=2)).float(), batch.labels, VALUES))


def draw_small(folder: Path, use: str, count: int) -> Pictures:
    """Draws faces at 64 pixels into a folder, or resumes, and returns them at 32 pixels."""
    faces = draw_to(folder / f"drawn-{use}", count, SEEDS[use])
    parts = [shrink(faces.images(part)).mul(255).round().byte() for part in torch.arange(len(faces)).split(1000)]
    return Pictures(torch.cat(parts).numpy(), faces.labels, "drawn faces of 32 pixels")


def train_small_judge(folder: Path, effort: float = 1.0) -> Judge:
    """Trains the judge of 64 pixels again on small faces, or loads it if it is trained already."""
    judge = Judge()
    judge.load_state_dict(load_judge().state_dict())
    faces = draw_small(folder, "judge", max(1, round(_JUDGE_FACES * min(1.0, effort))))
    options = {"rate": 1e-3, "weight_decay": 1e-3, "warm_up": 20, "ema": 0.99, "precision": "auto"}
    train_network(folder / "judge-small", judge, _SmallAttributes(), faces, steps=scaled(_JUDGE_STEPS, effort), batch_size=96, **options)
    write_weights(judge, "judge-small", folder / "weights")
    return judge.eval()


def train_pipeline(folder: Path, effort: float = 1.0, callbacks: Sequence[Any] = ()) -> Path:
    """Trains the pipeline, or resumes, and returns its folder; `effort` is a factor of the steps and, below 1, of the faces."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEEDS["train"])
        unet = small_unet()
    faces = draw_small(folder, "train", max(1, round(_FACES * min(1.0, effort))))
    options = {"rate": 1e-3, "betas": (0.9, 0.99), "warm_up": 200, "ema": 0.998, "precision": "auto"}
    options |= {"steps": scaled(_STEPS, effort), "batch_size": 32, "store": {"every": 250}, "callbacks": [Monitor(None), *callbacks]}
    train_network(folder / "small-faces", unet, ClassDiffusion(), faces, progress=True, **options)
    pipeline, target = import_extra("diffusers", "diffusers").DDPMPipeline, folder / "weights" / PIPELINE.name
    pipeline(copy.deepcopy(unet).half(), small_scheduler()).save_pretrained(target, safe_serialization=True)
    return target


def _train(folder: Path, effort: float) -> None:
    judge, faces = train_small_judge(folder, effort), draw(_TEST_FACES, seed=SEEDS["test"])
    found = accuracy(judge_small(shrink(faces.images), judge), faces)
    train_pipeline(folder, effort)
    report = {"judge": found, "costs": {name: read_costs(folder / name) for name in ("judge-small", "small-faces")}}
    replace_file(folder / "report.json", f"{json.dumps(report, indent=1)}\n".encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command with arguments; those of the command line if None."""
    run_command(_train, FOLDER, arguments)


if __name__ == "__main__":
    main()

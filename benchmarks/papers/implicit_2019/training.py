"""scikit-learn's digits and Fashion-MNIST, pictures that are no digits, networks, and their training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.handwritten import load_digits, load_real
from composable_energy import Energy
from composable_energy.options import import_extra
from composable_energy.sampling.noise import Noise
from composable_energy_classification import Classifier, pgd
from composable_energy_training import DenoisingScoreMatching, JointEnergyClassifier, Monitor, Optimizer, Prepared, Trainer

TRAINING, HELD_OUT, LEVELS, SIZE = 1197, 200, 17, 8
LETTERS = "ACDEFGHJKLMNPQRTUVWXYadefhkmnprtuvwxy"  # without those that are written as a digit is
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif"),
    *("DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10"),
)


@dataclass(frozen=True)
class Split:
    """Pictures with shape $(n, 1, S, S)$ in [0, 1], and their classes, in three parts."""

    training: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def split(seed: int) -> Split:
    """Returns the 1,797 digits, divided at random into 1,197, 200 and 400."""
    digits = load_digits(seed, test=0)
    x, y = digits.train.view(-1, 1, SIZE, SIZE), digits.train_labels
    ends = (0, TRAINING, TRAINING + HELD_OUT, len(x))
    first, second, third = ((x[a:b], y[a:b]) for a, b in itertools.pairwise(ends))
    return Split(first, second, third)


def split_fashion(seed: int) -> Split:
    """Returns Fashion-MNIST; of its train file 2,000 pictures, divided by the seed, are held out."""
    found = load_real("fashion", seed)
    train, test = found.train.unflatten(1, (1, 28, 28)), found.test.unflatten(1, (1, 28, 28))
    return Split((train[2000:], found.train_labels[2000:]), (train[:2000], found.train_labels[:2000]), (test, found.test_labels))


def quantised(x: Tensor) -> Tensor:
    """Returns pictures with the 17 levels of the digits."""
    return (x.clamp(0, 1) * (LEVELS - 1)).round() / (LEVELS - 1)


def drawn(texts: Sequence[str], count: int, generator: torch.Generator) -> Tensor:
    """Returns characters drawn with fonts as the digits were scanned: 32 x 32 black or white pixels, counted in squares of 4 x 4."""
    folder = Path(import_extra("matplotlib", "viz").get_data_path()) / "fonts" / "ttf"
    pictures = []
    for _ in range(count):
        text = texts[int(torch.randint(len(texts), (), generator=generator))]
        font = FONTS[int(torch.randint(len(FONTS), (), generator=generator))]
        picture = Image.new("L", (96, 96))
        ImageDraw.Draw(picture).text((24, 12), text, fill=255, font=ImageFont.truetype(str(folder / f"{font}.ttf"), 56))
        box = picture.getbbox() or (0, 0, 96, 96)
        height = 30
        width = max(4, min(26, round((box[2] - box[0]) * height / (box[3] - box[1]))))
        fitted = torch.zeros(32, 32)
        letter = picture.crop(box).resize((width, height))
        left = (32 - width) // 2
        fitted[1 : 1 + height, left : left + width] = (torch.tensor(list(letter.tobytes())).view(height, width) > 127).float()
        pictures.append(F.avg_pool2d(fitted[None], 4))
    return torch.stack(pictures)


def textures(count: int, generator: torch.Generator) -> Tensor:
    """Returns waves of any direction, length, phase and contrast."""
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    angle, length, phase, contrast = (torch.rand(count, 1, 1, 1, generator=generator) for _ in range(4))
    along = x * (torch.pi * angle).cos() + y * (torch.pi * angle).sin()
    wave = (2 * torch.pi * (along / (2 + 6 * length) + phase)).sin()
    return 0.5 + (0.2 + 0.3 * contrast) * wave


def interpolations(x: Tensor, y: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns means of two pictures of different digits."""
    a, b = torch.randint(len(x), (2, 20 * count), generator=generator)
    kept = (y[a] != y[b]).nonzero().flatten()[:count]
    return (x[a[kept]] + x[b[kept]]) / 2


SETS: tuple[str, ...] = ("printed digits", "printed letters", "textures", "noise", "interpolations", "inverted", "constant")


def unusual_sets(x: Tensor, y: Tensor, seed: int) -> dict[str, Tensor]:
    """Returns as many pictures of each of seven kinds as there are test pictures."""
    count, generator = len(x), torch.Generator().manual_seed(seed)
    makers: dict[str, Callable[[], Tensor]] = {
        "printed digits": lambda: drawn("0123456789", count, generator),
        "printed letters": lambda: drawn(LETTERS, count, generator),
        "textures": lambda: textures(count, generator),
        "noise": lambda: torch.rand(x.shape, generator=generator),
        "interpolations": lambda: interpolations(x, y, count, generator),
        "inverted": lambda: 1 - x,
        "constant": lambda: torch.rand(count, 1, 1, 1, generator=generator).expand(x.shape),
    }
    return {name: quantised(makers[name]()).contiguous() for name in SETS}


def corrupted(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Returns pictures with a share of their pixels replaced by random levels."""
    random = quantised(torch.rand(x.shape, generator=generator))
    return torch.where(torch.rand(x.shape, generator=generator) < share, random, x)


WIDTH, PIXELS, DIGITS = 128, 64, 10


class DigitEnergy(ce.Energy):
    r"""The energy $-\log \sum_y e^{f_y(x)}$ of a classifier with two hidden layers."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.event_shape = (1, size, size)
        hidden = (nn.Linear(size**2, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.net = ce.shared(nn.Sequential(nn.Flatten(), _Centred(), *hidden, nn.Linear(WIDTH, DIGITS)))

    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x).logsumexp(1)

    def logits(self, x: Tensor) -> Tensor:
        """Returns $f(x)$, with shape $(B, 10)$."""
        return self.net(x)

    def classifier(self) -> Classifier:
        """Returns the classifier whose refinement moves on the energy."""
        return Classifier(ce.ClassifierEnergy(self.net, base=self, labels=DIGITS))


class DenoisingEnergy(ce.Energy):
    r"""The energy $\lvert x - f(x) \rvert^2 / 2 (\sigma^2 + s^2)$ of a network $f$ with one hidden layer, for a noise level $\sigma$."""

    def __init__(self, width: int = 200, spread: float = 0.14) -> None:
        super().__init__()
        self.event_shape, self.spread = (1, 8, 8), spread
        self.denoiser = nn.Sequential(nn.Flatten(), _Centred(), nn.Linear(PIXELS, width), nn.SiLU(), nn.Linear(width, PIXELS))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (x.flatten(1) - self.denoiser(x)).square().sum(1) / (2 * (sigma.square() + self.spread**2))


class _Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


class Autoencoder(nn.Module):
    """An autoencoder with a code of 16 numbers; its score is the squared error of the reconstruction."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), _Centred(), nn.Linear(PIXELS, 160), nn.SiLU(), nn.Linear(160, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 160), nn.SiLU(), nn.Linear(160, PIXELS))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the errors, with shape $(B,)$."""
        return (self.decoder(self.encoder(x)) - x.flatten(1)).square().sum(1)


class Autoregressive(nn.Module):
    r"""A masked autoregressive network (MADE; Germain et al., 2015) with mixtures of two discretised logistics for the 17 levels.

    Its score is $-\log p(x)$, an exact log-likelihood of pictures with 17 levels.

    References:
        MADE: masked autoencoder for distribution estimation (Germain et al., 2015), https://arxiv.org/abs/1502.03509
    """

    masks: tuple[Tensor, ...]

    def __init__(self, width: int = 52, parts: int = 2) -> None:
        super().__init__()
        self.parts = parts
        sizes = (PIXELS, width, width, PIXELS * 3 * parts)
        degrees = [torch.arange(PIXELS), *(torch.arange(width) * (PIXELS - 1) // width for _ in range(2))]
        last = torch.arange(PIXELS).repeat_interleave(3 * parts)
        masks = [(after[:, None] >= before[None]).float() for before, after in itertools.pairwise(degrees)]
        masks.append((last[:, None] > degrees[-1][None]).float())
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        for i, mask in enumerate(masks):
            self.register_buffer(f"mask{i}", mask)

    def forward(self, x: Tensor) -> Tensor:
        r"""Returns $-\log p(x)$, with shape $(B,)$."""
        return -self.log_probabilities(x).sum(1)

    def log_probabilities(self, x: Tensor) -> Tensor:
        """Returns the log probability of each pixel given those before it, with shape $(B, 64)$."""
        x = x.flatten(1)
        h = 2 * x - 1
        for i, layer in enumerate(self.layers):
            h = F.linear(h if i == 0 else F.silu(h), layer.weight * getattr(self, f"mask{i}"), layer.bias)
        share, mean, log_width = h.view(len(x), PIXELS, 3, self.parts).unbind(2)
        inverse, half = torch.exp(-log_width.clamp(-6, 3)), 0.5 / (LEVELS - 1)
        at = x.unsqueeze(2)
        upper, lower = (at - mean + half) * inverse * (LEVELS - 1), (at - mean - half) * inverse * (LEVELS - 1)
        cdf_upper = torch.where(at >= 1 - half, torch.ones_like(upper), upper.sigmoid())
        cdf_lower = torch.where(at <= half, torch.zeros_like(lower), lower.sigmoid())
        return (share.log_softmax(2) + (cdf_upper - cdf_lower).clamp_min(1e-9).log()).logsumexp(2)


SEEDS = (0, 1, 2)  # settings were chosen on the split of seed 100


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Returns the mean and the standard deviation of each figure over seeds."""
    return {
        key: {"mean": mean(row[key] for row in rows), "deviation": stdev(row[key] for row in rows) if len(rows) > 1 else 0.0}
        for key in rows[0]
    }


BATCH, RATE = 64, 1e-3


@dataclass(frozen=True)
class Joint:
    """Settings of a joint energy-based model."""

    noise: float  # standard deviation of the noise on the pictures
    step_size: float  # of Langevin at temperature 1
    weight: float = 3.0  # of the cross entropy
    steps: int = 1000  # training steps
    chain: int = 10  # steps of each chain for each training step


def minimise(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], data: tuple[Tensor, Tensor], steps: int, seed: int) -> None:
    """Trains with Adam; the learning rate falls linearly over the second half."""
    generator, (x, y) = torch.Generator().manual_seed(seed), data
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - step / steps))
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(x[rows], y[rows]).backward()
        optimizer.step()
    model.eval()


def softmax(data: tuple[Tensor, Tensor], seed: int, noise: float = 0.0, steps: int = 1000) -> DigitEnergy:
    """Returns a network trained by cross entropy, on pictures with noise."""
    torch.manual_seed(seed)
    model, generator = DigitEnergy(data[0].shape[-1]), torch.Generator().manual_seed(seed)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(x + noise * torch.randn(x.shape, generator=generator)), y)

    minimise(model, loss, data, steps, seed)
    return model


def adversarial(data: tuple[Tensor, Tensor], seed: int, radius: float, steps: int = 1000) -> DigitEnergy:
    """Returns a network trained by cross entropy on pictures under attack (Madry et al., 2018)."""
    torch.manual_seed(seed)
    model, seeds = DigitEnergy(data[0].shape[-1]), itertools.count()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(pgd(model.logits, x, y, radius, steps=7, loss="cross-entropy", seed=next(seeds))), y)

    minimise(model, loss, data, steps, seed)
    return model


def joint(data: tuple[Tensor, Tensor], seed: int, settings: Joint) -> DigitEnergy:
    """Returns a joint energy-based model (Grathwohl et al., 2020), trained by the library's objective."""
    torch.manual_seed(seed)
    model = DigitEnergy(data[0].shape[-1])
    objective = JointEnergyClassifier(
        steps=settings.chain, options={"step_size": settings.step_size}, buffer=2000, fresh=0.05, weight=settings.weight
    )

    def add_noise(x: Tensor, noise: Noise) -> Tensor:
        return x + settings.noise * noise.normal(x, 9)

    Trainer(
        model,
        objective,
        Prepared((data[0], {"class": data[1]}), add_noise),
        steps=settings.steps,
        batch_size=BATCH,
        seed=seed,
        optimizer=Optimizer(rate=RATE, warm_up=50, decay=0.5),
        callbacks=[Monitor(None)],
    ).fit()
    return model.eval()


def denoising(x: Tensor, seed: int, level: float, steps: int = 2500) -> Energy:
    """Returns the energy of pictures with noise of one level (Vincent, 2011), trained by the library's objective."""
    torch.manual_seed(seed)
    model, optimizer = DenoisingEnergy(), Optimizer(rate=2 * RATE, betas=(0.9, 0.999), warm_up=50, decay=0.5)
    objective = DenoisingScoreMatching(level, level)
    Trainer(model, objective, x, steps=steps, batch_size=BATCH, seed=seed, optimizer=optimizer, callbacks=[Monitor(None)]).fit()
    return model.eval().at(level)

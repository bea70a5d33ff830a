r"""The layers of a face, painted from back to front by signed distances, with random numbers keyed by name.

A shape is a signed distance $d(x, y)$, negative inside, with opacity $\mathrm{clamp}(1/2 - d / \text{pixel}, 0, 1)$, which antialiases its
edges at any resolution.
"""

import math
import zlib
from functools import partial

import torch
from torch import Tensor

_floats = partial(torch.tensor, dtype=torch.float32)  # whatever the default is


class HashedRandom:
    """Stateless random numbers of faces: a hash (splitmix64) of seed, index and name."""

    def __init__(self, seed: int, index: Tensor) -> None:
        self.count = len(index)
        self._key = _mix(index ^ _mix(torch.tensor(seed)))

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Returns numbers in [low, high) with shape (B, 1, 1)."""
        bits = _mix(self._key ^ _mix(torch.tensor(zlib.crc32(name.encode()))))
        return low + (high - low) * _shifted(bits, 40).float().mul(2.0**-24).view(-1, 1, 1)

    def integer(self, name: str, count: int) -> Tensor:
        """Returns integers from 0 to count - 1 with shape (B,)."""
        return (self.uniform(name).flatten() * count).long()

    def color(self, name: str, low: float, high: float, saturation: float) -> Tensor:
        """Returns colors with shape (B, 3): any hue, a grey between low and high, and at most this saturation."""
        hue = self.uniform(f"{name} hue").flatten(1) + _floats([[0.0, 1 / 3, 2 / 3]])
        strength = saturation * self.uniform(f"{name} saturation", 0.3).flatten(1)
        return (self.uniform(f"{name} grey", low, high).flatten(1) + strength * (2 * math.pi * hue).cos()).clamp(0, 1)


def _shifted(bits: Tensor, count: int) -> Tensor:
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = bits + (0x9E3779B97F4A7C15 - (1 << 64))
    bits = (bits ^ _shifted(bits, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    bits = (bits ^ _shifted(bits, 27)) * (0x94D049BB133111EB - (1 << 64))
    return bits ^ _shifted(bits, 31)


class Canvas:
    """A batch of pictures to paint on, and the face coordinates of their pixels."""

    def __init__(self, numbers: HashedRandom, size: int) -> None:
        line = (torch.arange(size, dtype=torch.float32) + 0.5) * (2 / size) - 1
        angle, scale = numbers.uniform("tilt", -0.10, 0.10), numbers.uniform("scale", 0.94, 1.06)
        across = (line.view(1, 1, -1) - numbers.uniform("shift x", -0.06, 0.06)) / scale
        down = (line.view(1, -1, 1) - numbers.uniform("shift y", -0.03, 0.06)) / scale
        self.x = across * angle.cos() + down * angle.sin()
        self.y = down * angle.cos() - across * angle.sin()
        self.side = self.x.abs()  # mirrored coordinate: one shape in it paints both sides
        self.height = line.view(1, -1, 1)
        self.pixel = 2 / size / scale
        self.image = torch.zeros(numbers.count, 3, size, size, dtype=torch.float32)

    def paint(self, color: Tensor, distance: Tensor, opacity: Tensor | float = 1.0) -> None:
        alpha = (0.5 - distance / self.pixel).clamp_(0, 1).mul_(opacity)
        self.image.lerp_(color[:, :, None, None].expand(*self.image.shape[:2], 1, 1), alpha.unsqueeze(1))


def ellipse(x: Tensor, y: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    """Returns the signed distance to an ellipse around the origin with these half axes, exact along the shorter one."""
    smaller = torch.minimum(torch.as_tensor(width), torch.as_tensor(height))
    return ((x / width).square_().add_((y / height).square_()).sqrt_() - 1) * smaller


def stroke(x: Tensor, y: Tensor, end: tuple[Tensor | float, Tensor | float], radius: Tensor | float) -> Tensor:
    """Returns the signed distance to a round stroke from the origin to `end`."""
    right, down = (torch.as_tensor(part) for part in end)
    along = ((x * right + y * down) / (right * right + down * down)).clamp_(0, 1)
    return ((x - along * right).square_() + (y - along * down).square_()).sqrt_() - radius


_HAIR = _floats([[0.09, 0.09, 0.11], [0.37, 0.21, 0.10], [0.96, 0.82, 0.42], [0.85, 0.30, 0.09]])
_SKIN = _floats([[1.00, 0.87, 0.77], [0.96, 0.78, 0.62], [0.84, 0.62, 0.45], [0.66, 0.47, 0.34]])
_IRIS = _floats([[0.22, 0.44, 0.74], [0.36, 0.22, 0.12], [0.20, 0.50, 0.28]])
_WHITE = _floats([[0.98, 0.98, 0.97]])
_GREY = _floats([[0.86, 0.86, 0.88]])


def paint_face(numbers: HashedRandom, attributes: Tensor, hair: Tensor, size: int) -> Tensor:
    """Returns pictures of faces, in [0, 1] with shape $(B, 3, size, size)$."""
    canvas = Canvas(numbers, size)
    portrait = _Portrait(canvas, numbers, attributes, hair)
    for layer in (
        portrait.background,
        portrait.long_hair,
        portrait.body,
        portrait.head,
        portrait.cheeks,
        portrait.short_hair,
        portrait.wrinkles,
        portrait.eyes,
        portrait.nose,
        portrait.mouth,
        portrait.glasses,
        portrait.hat,
    ):
        layer()
    return canvas.image.clamp_(0, 1)


class _Portrait:
    """The layers of a face; each method paints one layer on the canvas."""

    def __init__(self, canvas: Canvas, numbers: HashedRandom, attributes: Tensor, hair: Tensor) -> None:
        self.canvas, self.numbers = canvas, numbers
        self.male, self.smiling, self.with_glasses, self.with_hat, self.old = (column.view(-1, 1, 1) for column in attributes.unbind(1))
        tone = numbers.uniform("skin tone", 0, len(_SKIN) - 1).flatten()
        lower = tone.long()
        self.skin = torch.lerp(_SKIN[lower], _SKIN[lower + 1], (tone - lower)[:, None])
        shade = torch.cat([numbers.uniform(f"hair {channel}", -0.04, 0.04).flatten(1) for channel in "rgb"], 1)
        self.hair = torch.lerp((_HAIR[hair] + shade).clamp(0, 1), _GREY, 0.18 * self.old.flatten(1))
        self.head_width, self.head_height = (numbers.uniform("head width", 0.47, 0.53), numbers.uniform("head", 0.60, 0.65))
        self.eye_x, self.eye_y = numbers.uniform("eye x", 0.205, 0.235), numbers.uniform("eye y", -0.03, 0.01)

    def background(self) -> None:
        top = self.numbers.color("background", 0.66, 0.86, 0.16)
        bottom = (top + self.numbers.uniform("background gradient", -0.16, 0.16).flatten(1)).clamp(0, 1)
        depth = (self.canvas.height / 2 + 0.5).unsqueeze(1)
        self.canvas.image += torch.lerp(top[:, :, None, None], bottom[:, :, None, None], depth)

    def long_hair(self) -> None:
        c, length = self.canvas, self.numbers.uniform("hair length", 0.55, 0.85)
        shape = ellipse(c.x, (c.y + 0.1).clamp(max=0), self.head_width + 0.18, 0.68)
        c.paint(self.hair * 0.9, torch.maximum(shape, c.y - length), 1 - self.male)

    def body(self) -> None:
        c = self.canvas
        shoulders = self.numbers.uniform("shoulders", 0.64, 0.72) + 0.14 * self.male
        c.paint(self.numbers.color("shirt", 0.25, 0.75, 0.25), ellipse(c.x, c.y - 1.22, shoulders, 0.42))
        c.paint(self.skin * 0.88, torch.maximum(c.side - (0.16 + 0.07 * self.male), (c.y - 0.70).abs() - 0.24))

    def head(self) -> None:
        c = self.canvas
        c.paint(self.skin * 0.93, ellipse(c.side - self.head_width - 0.02, c.y - 0.03, 0.09, 0.14), self.male)
        # Two outlines that differ at the jaw: a superellipse of exponent 3, and an ellipse that narrows to the chin.
        low = (c.y.clamp(min=0) / self.head_height) ** 1.5
        across = c.side / (self.head_width * (1 - (0.02 + 0.28 * (1 - self.male)) * low))
        down = ((c.y - 0.02) / self.head_height).abs()
        square = (across**3 + down**3 + 1e-9) ** (1 / 3)
        round_ = (across**2 + down**2 + 1e-9).sqrt()
        c.paint(self.skin, (torch.where(self.male > 0.5, square, round_) - 1) * self.head_width)

    def cheeks(self) -> None:
        """A smile lifts and reddens the cheeks."""
        c = self.canvas
        rosy = (self.skin * _floats([[1.0, 0.72, 0.70]])).clamp(0, 1)
        spot = 1 - ((c.side - 0.31) / 0.14).square() - ((c.y - 0.20) / 0.10).square()
        c.image.lerp_(rosy[:, :, None, None], (spot.clamp(min=0) * 0.75 * self.smiling).unsqueeze(1))

    def short_hair(self) -> None:
        c = self.canvas
        fringe, parting = self.numbers.uniform("fringe", -0.39, -0.30), self.numbers.uniform("parting", -0.2, 0.2)
        edge = c.y - fringe - 0.35 * (c.x - parting).abs() * (1 - self.male) + 0.10 * self.male - 0.02
        skull = ellipse(c.x, c.y + 0.12, self.head_width + 0.07, 0.62)
        c.paint(self.hair, torch.maximum(skull, edge))
        burns = torch.maximum((c.side - self.head_width).abs() - 0.065, (c.y + 0.26).abs() - 0.29)
        c.paint(self.hair, torch.maximum(skull, burns), self.male)

    def wrinkles(self) -> None:
        """Age: lines on the forehead, under the eyes and from the nose to the mouth."""
        c, dark = self.canvas, self.skin * 0.60
        forehead = torch.maximum((c.y + 0.275 - 0.15 * c.x.square()).abs() - 0.016, c.side - 0.24)
        folds = stroke(c.side - 0.13, c.y - 0.22, (0.09, 0.13), 0.020)
        bags = stroke(c.side - self.eye_x + 0.09, c.y - self.eye_y - 0.135, (0.17, 0.0), 0.016)
        c.paint(dark, torch.minimum(torch.minimum(forehead, folds), bags), 0.85 * self.old)

    def eyes(self) -> None:
        c, eye = self.canvas, (self.canvas.side - self.eye_x)
        gaze = self.numbers.uniform("gaze", -0.025, 0.025) * c.x.sign()
        down = c.y - self.eye_y
        c.paint(_WHITE, ellipse(eye, down, 0.10, 0.080))
        c.paint(_IRIS[self.numbers.integer("iris", len(_IRIS))], ellipse(eye - gaze, down, 0.060, 0.068))
        c.paint(_WHITE * 0.05, ellipse(eye - gaze, down, 0.030, 0.034))
        c.paint(_WHITE * 0.12, stroke(eye + 0.09, down + 0.074, (0.20, -0.010), 0.022 - 0.010 * self.male))
        tilt, thick = self.numbers.uniform("brow tilt", -0.025, 0.025), 0.020 + 0.020 * self.male
        color = torch.lerp(self.hair * 0.62, _GREY, 0.75 * self.old.flatten(1))
        c.paint(color, stroke(eye + 0.10, down + 0.185 - tilt, (0.21, -2 * tilt), thick))

    def nose(self) -> None:
        c, shift = self.canvas, self.numbers.uniform("nose", -0.03, 0.03)
        c.paint(self.skin * 0.80, stroke(c.x, c.y - self.eye_y - 0.10, (shift, 0.20), 0.016))
        c.paint(self.skin * 0.74, ellipse(c.x - shift / 2, c.y - 0.225, 0.068, 0.026))

    def mouth(self) -> None:
        """A smile is a wide open crescent with teeth; a serious mouth is a narrow line, level or bent down."""
        c, numbers = self.canvas, self.numbers
        lip = torch.lerp(_floats([[0.80, 0.24, 0.28]]), self.skin * 0.66, 0.55 * self.male.flatten(1))
        level = c.y - numbers.uniform("mouth y", 0.375, 0.405)
        half = numbers.uniform("smile width", 0.25, 0.29)
        bow = (c.x / half).square()
        upper = level - 0.02 * (1 - bow)
        lower = level - numbers.uniform("smile depth", 0.135, 0.175) * (1 - bow)
        crescent = torch.maximum(lower, -upper)
        c.paint(lip * 0.95, crescent - 0.028, self.smiling)
        c.paint(_floats([[0.42, 0.10, 0.12]]), crescent + 0.004, self.smiling)
        c.paint(_WHITE, torch.maximum(crescent + 0.006, level - 0.078 * (1 - 0.4 * bow)), self.smiling)
        bend = numbers.uniform("serious bend", -0.5, 0.3) * c.x.square()
        line = torch.maximum(
            (level - 0.03 + bend).abs() - (0.026 + 0.012 * (1 - self.male)), c.side - numbers.uniform("serious width", 0.13, 0.16)
        )
        c.paint(lip * 0.92, line, 1 - self.smiling)

    def glasses(self) -> None:
        c, radius = self.canvas, self.numbers.uniform("glasses radius", 0.150, 0.172)
        frame = self.numbers.color("glasses", 0.06, 0.20, 0.06)
        eye, down = c.side - self.eye_x, c.y - self.eye_y - 0.01
        lens = ellipse(eye, down, radius, radius * 0.92)
        c.paint(_WHITE, lens, 0.16 * self.with_glasses)
        bar = torch.maximum((down + 0.015).abs() - 0.022, (eye.abs() - radius).clamp(min=-1).neg())
        bar = torch.maximum(bar, c.side - self.head_width)
        c.paint(frame, torch.minimum(lens.abs() - 0.024, bar), self.with_glasses)

    def hat(self) -> None:
        c, color = self.canvas, self.numbers.color("hat", 0.25, 0.75, 0.28)
        brim = c.y - self.numbers.uniform("hat y", -0.42, -0.37)
        crown = torch.maximum(ellipse(c.x, c.y + 0.38, self.head_width + 0.10, self.numbers.uniform("hat height", 0.46, 0.55)), brim)
        c.paint(color, crown, self.with_hat)
        band = torch.maximum((brim + 0.11).abs() - 0.05, crown)
        c.paint(color * 0.45 + 0.5, band, self.with_hat)
        c.paint(color * 0.70, torch.maximum(brim.abs() - 0.052, c.side - (self.head_width + 0.22)), self.with_hat)

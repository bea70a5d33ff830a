r"""The networks of `base-and-attributes`: the energy of any picture over codes of an autoencoder, and heads, at all noise levels."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.options import check_flag, check_integer
from composable_energy_image.autoencoder import Autoencoder
from composable_energy_image.code_mixture import CodeMixture
from composable_energy_image.noise_conditioning import EMBEDDING, NoiseConditionedMLP, level_column


class CodeNetwork(ce.Energy):
    r"""The energy of codes alone, $B(z, \sigma) = \tfrac12 |u|^2 + \langle u, f(u, \sigma) \rangle / (\sigma c)$.

    Here $u = c z$ and $c = (1 + \sigma^2)^{-1/2}$. With this form $\sigma \nabla_z B = \sigma z / (1 + \sigma^2) + f + J_f^T u$, and before
    training $B$ is that of standard normal codes. What is left for $f$ to learn has size $c$: a `balanced` network has $c f$ in place of
    $f$, so that $f$ has unit size at every level (Karras et al., 2022). `conditions` numbers $y$ enter by a linear layer, so that at
    $y = 0$ it is the energy of a network without conditions.
    """

    def __init__(self, code: int = 64, *, width: int = 256, blocks: int = 4, conditions: int = 0, balanced: bool = False) -> None:
        super().__init__()
        self.event_shape, self.balanced = (code,), check_flag("balanced", balanced)
        self.net = NoiseConditionedMLP(code, code, width=width, blocks=blocks, conditions=conditions)

    def forward(self, x: Tensor, sigma: Tensor | float, y: Tensor | None = None) -> Tensor:
        sigma = level_column(sigma, x)
        scale = (1 + sigma * sigma).rsqrt()
        u = x * scale
        return (u * (u / 2 + self.net(u, sigma, y) / (sigma if self.balanced else sigma * scale))).sum(1)

    @torch.no_grad()
    def write_unconditioned(self, network: CodeNetwork) -> None:
        """Copies the energy at $y = 0$ into a network of the same width without conditions."""
        weights, first = self.state_dict(), "net.embed.0.weight"
        network.load_state_dict({**weights, first: weights[first][:, :EMBEDDING]})


class CodeEnergy(ce.Energy):
    r"""The energy of any picture at a noise level, $B(z, \sigma)$, over codes $z$ with shape $(B, D)$; its decoder is an autoencoder.

    It recommends the sampler `annealed` with 25 levels and 100 gradients by default, a setting chosen on drawn faces, or `mixture` where it
    is a mixture; and one thread, because in networks this small the synchronization of two threads costs more than they gain.

    Args:
        size: Height and width $S$ of the pictures, from 16 to 256.
        channels: Channels $C$, 1 or 3.
        code: Numbers $D$ in a code.
        width: Hidden units.
        blocks: Residual blocks.
        sigma_min: The lowest noise level, and the default: the density of the codes themselves.
        sigma_max: The highest noise level.
        name: The name in expressions.
        features: Channels of the decoder, see `Autoencoder`.
        corrector_steps: Steps of the recommended sampler at each noise level.
        balanced: Whether the network's output is scaled as `CodeNetwork` says; weights fit one of the two.
        components: Gaussians of a `CodeMixture`, which the energy is in place of a network; 0 for a network.
        frames: Covariances of that mixture.
        details: Channels of the decoder's last layer, see `Autoencoder`.

    Attributes:
        sigma_min: The lowest noise level.
        sigma_max: The highest noise level.

    Raises:
        OptionError: An option is out of range.
    """

    comes_trained = False

    stored_texts: ClassVar[tuple[str, ...]] = ("name",)

    def __init__(
        self,
        size: int = 64,
        channels: int = 3,
        code: int = 64,
        width: int = 256,
        blocks: int = 4,
        sigma_min: float = 0.05,
        sigma_max: float = 4.0,
        name: str = "base",
        features: int = 64,
        corrector_steps: int = 3,
        balanced: bool = False,
        components: int = 0,
        frames: int = 0,
        details: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < sigma_min < sigma_max:
            raise OptionError(f"Noise levels must satisfy 0 < sigma_min < sigma_max, got {sigma_min!r} and {sigma_max!r}.")
        self.sigma_min, self.sigma_max, self.name = float(sigma_min), float(sigma_max), name
        if check_integer("components", components, 0):
            self.net = CodeMixture(check_integer("code", code), components, frames)
        else:
            sizes = {"width": check_integer("width", width), "blocks": check_integer("blocks", blocks, 0)}
            self.net = CodeNetwork(check_integer("code", code), **sizes, balanced=balanced)
        self.decoder = Autoencoder(size, channels, code, features, details)
        self.event_shape = (code,)
        levels = {"levels": 25, "sigma_max": self.sigma_max, "sigma_min": self.sigma_min}
        correctors = {"corrector_steps": check_integer("corrector_steps", corrector_steps, 0), "delta": 0.25}
        self.recommended = ce.Recommendation("mixture" if components else "annealed", options=levels | correctors, threads=1)

    @property
    def autoencoder(self) -> Autoencoder:
        """The decoder, with its type."""
        return cast(Autoencoder, self.decoder)

    def forward(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Returns energies with shape $(B,)$ of codes with shape $(B, D)$ at levels with shape $()$ or $(B,)$."""
        return self.net(x, sigma=self.sigma_min if sigma is None else sigma)


class CodeHeads(nn.Module):
    r"""Logits of attributes given a code at a noise level $\sigma$.

    An attribute of two values has one column, its log odds; an attribute of $K > 2$ values has $K$ columns.

    Args:
        outputs: Number of columns.
        code: Numbers $D$ in a code.
        width: Hidden units.
        blocks: Residual blocks.
        sigma_min: The default noise level.

    Raises:
        OptionError: An option is out of range.
    """

    def __init__(self, outputs: int, *, code: int = 64, width: int = 256, blocks: int = 2, sigma_min: float = 0.05) -> None:
        super().__init__()
        self.sigma_min = sigma_min
        sizes = {"width": check_integer("width", width), "blocks": check_integer("blocks", blocks, 0)}
        self.net = NoiseConditionedMLP(check_integer("code", code), check_integer("outputs", outputs), **sizes)

    def forward(self, z: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Returns logits with shape $(B, outputs)$ of codes with shape $(B, D)$ at levels with shape $()$ or $(B,)$."""
        sigma = level_column(self.sigma_min if sigma is None else sigma, z)
        return self.net(z * (1 + sigma * sigma).rsqrt(), sigma)

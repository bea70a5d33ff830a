"""Generators: functions from latent points to pictures, with what the library needs to know of them, and those in files."""

import io
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from typing_extensions import Self

import composable_energy as ce
from composable_energy import Energy
from composable_energy.errors import ComposableEnergyError, FileFormatError, OptionError, ShapeError
from composable_energy.files import expanded, read_bytes
from composable_energy.options import check_flag, check_integer, import_extra

_PROBES = 2


class GeneratorError(ComposableEnergyError, ValueError):
    """A generator returned something else than finite pictures of one shape, one for each latent point."""

    documentation: ClassVar[str] = "errors.md#generatorerror"


class Generator(nn.Module):
    r"""A generator $x = g(z)$, or $x = s(m(z))$ with the mapping $m$ of its latent points to $w$; it is the decoder of latent energies.

    In one evaluation of an expression $g(z)$ and $m(z)$ are computed once, however many terms use them. Its output is checked: pictures of
    one shape, one for each point, without NaN. It is fixed: it is in eval mode, and `train()` does not change that.

    Args:
        function: The generator $g$, or its second part $s$ if there is a mapping: a module or function of a batch.
        latent_shape: The shape of one latent point, or its length.
        mapping: $m$, a module or function.

    Attributes:
        latent_shape: The shape of one latent point $z$.
        event_shape: The shape of one picture, found by a first call.

    Raises:
        GeneratorError: The output is not one picture for each point, is not finite, or differs between two calls.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], latent_shape: int | Iterable[int], *, mapping: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        if not callable(function) or isinstance(function, type):
            raise GeneratorError(f"A generator is a module or a function of latent points, got {function!r}; make an instance of a class.")
        self.function, self.mapping = function, mapping
        lengths = latent_shape if isinstance(latent_shape, Iterable) else [latent_shape]
        self.latent_shape = torch.Size([check_integer("latent_shape", length) for length in lengths])
        self.event_shape: torch.Size | None = None
        for part in (function, mapping):
            if isinstance(part, nn.Module) and part.training:
                with suppress(NotImplementedError):  # an exported program, whose mode was fixed when it was exported
                    part.eval()
        self.training = False
        self._probe()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return self

    def map(self, z: Tensor) -> Tensor:
        """Returns $w = m(z)$, or $z$ without a mapping."""
        return z if self.mapping is None else ce.shared(self.mapping)(z)  # pyright: ignore[reportArgumentType]

    def pictures(self, z: Tensor) -> Tensor:
        """Returns $g(z)$, computed once in one evaluation of an expression."""
        return ce.shared(self)(z)

    def forward(self, z: Tensor) -> Tensor:
        """Returns the pictures $g(z)$, with shape $(B, *)$.

        Raises:
            GeneratorError: The pictures have another shape than before, or are not finite.
        """
        if z.shape[1:] != self.latent_shape:
            raise ShapeError(f"The generator takes latent points of shape (B, {_text(self.latent_shape)}), got {tuple(z.shape)}.")
        pictures = self.function(self.map(z))
        if not isinstance(pictures, Tensor) or not pictures.is_floating_point():
            got = f"a tensor of {pictures.dtype}" if isinstance(pictures, Tensor) else f"a {type(pictures).__name__}"
            raise GeneratorError(f"The generator returned {got}; return a floating tensor of pictures, such as `lambda z: g(z).sample`.")
        if pictures.shape[:1] != z.shape[:1] or (self.event_shape is not None and pictures.shape[1:] != self.event_shape):
            expected = "one picture each" if self.event_shape is None else f"({len(z)}, {_text(self.event_shape)})"
            raise GeneratorError(f"The generator returned shape {tuple(pictures.shape)} for {len(z)} latent points; expected {expected}.")
        broken = int((~pictures.detach().isfinite()).flatten(1).any(1).sum()) if pictures.numel() else 0
        if broken:
            raise GeneratorError(
                f"The generator returned NaN or infinite values for {broken} of {len(z)} latent points. Check it at the prior's draws; "
                "half precision may overflow (`generator.float()`), and latent points far from the prior may be outside of what it knows."
            )
        return pictures

    def _probe(self) -> None:
        """Finds the shapes by a first call, and whether a picture depends on its own point alone."""
        weight = next((part for part in self.parameters() if part.is_floating_point()), torch.zeros(()))
        z = torch.rand(_PROBES, *self.latent_shape, generator=torch.Generator().manual_seed(0)).to(weight)  # also inside of a unit cube
        with torch.no_grad():
            try:
                pictures = self(z)
                again, alone = self(z), self(z[:1])
            except ComposableEnergyError:
                raise
            except Exception as error:
                raise GeneratorError(
                    f"The generator failed for latent points of shape {tuple(z.shape)}: {type(error).__name__}: {error}. Is the shape of "
                    "one latent point right?"
                ) from error
        self.event_shape = pictures.shape[1:]
        if not torch.allclose(pictures, again, rtol=1e-3, atol=1e-4):
            raise GeneratorError(
                "The generator gives other pictures for the same latent points, so it draws random numbers of its own. Fix them, such as "
                "by `lambda z: g(z, noise_mode='const')`."
            )
        if not torch.allclose(pictures[:1], alone, rtol=1e-2, atol=1e-2):
            raise GeneratorError("The picture of a latent point depends on the other points of the batch; normalise each point alone.")

    def extra_repr(self) -> str:
        return f"({_text(self.latent_shape)}) -> ({_text(() if self.event_shape is None else self.event_shape)})"


def latent(
    generator: Generator | Callable[[Tensor], Tensor],
    prior: int | Sequence[int] | Distribution | Energy,
    *,
    mapping: Callable[[Tensor], Tensor] | None = None,
    name: str = "prior",
) -> Energy:
    """Returns the prior of a generator as an energy of latent points that are shown decoded: the base of attributes.

    Args:
        generator: A `Generator`, or the module or function that one is made of.
        prior: The density of latent points: the number or shape of standard normal ones, a distribution, or an energy with `event_shape`.
        mapping: The mapping, if `generator` is not a `Generator`.
        name: The name in expressions.

    Raises:
        OptionError: The prior is of another kind, or an energy without a known shape.
        GeneratorError: The generator does not fit the prior.

    Example:
        >>> import torch
        >>> base = latent(torch.nn.Linear(2, 12), 2)
        >>> base.sample(5, seed=0).shape
        torch.Size([5, 12])
    """
    if isinstance(prior, int) and not isinstance(prior, bool):
        prior = (prior,)
    if isinstance(prior, Sequence) and all(isinstance(length, int) and length > 0 for length in prior):
        prior = Normal(torch.zeros(tuple(prior)), 1.0)
    if not isinstance(prior, Distribution | Energy):
        raise OptionError(f"A prior is the number of standard normal latents, their shape, a distribution or an energy, got {prior!r}.")
    shape = prior.event_shape if isinstance(prior, Energy) else prior.batch_shape + prior.event_shape
    if shape is None:
        raise OptionError(f"The shape of one point of the prior {prior} is not known: set its `event_shape`.")
    if not isinstance(generator, Generator):
        generator = Generator(generator, shape, mapping=mapping)
    elif mapping is not None:
        raise OptionError("The generator is a Generator, which has its own mapping: leave `mapping` out, or give it to `Generator`.")
    if generator.latent_shape != shape:
        raise GeneratorError(f"The generator takes points of shape ({_text(generator.latent_shape)}), the prior has ({_text(shape)}).")
    base = ce.as_energy(prior, decoder=generator, **({} if isinstance(prior, Energy) else {"name": name}))
    base.name = name
    return base


def _text(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


_WAYS = (
    "weights and code are safe: in Python, `g = Generator()` from your own code, then "
    "`g.load_state_dict(safetensors.torch.load_file(path))`, with a file that `safetensors.torch.save_file(g.state_dict(), path)` wrote"
)


def load_generator(path: str | Path, *, trust: bool = False) -> nn.Module:
    """Returns the module in a file of TorchScript, of `torch.export`, or of ONNX; its parameters need no gradient.

    **Such a file can run any code**: torch evaluates texts of an exported program and runs methods of TorchScript, and `onnx2torch` (the
    extra `onnx`) writes Python with names of the graph. Read only what you or somebody you trust exported; else take weights as
    safetensors and a module of your own code. `latent(load_generator(path, trust=True), prior)` makes a base of it. No saved expression
    names a path: register the module, `ce.register("encoder", "mine", lambda: load_generator(path, trust=True))`, take it by
    `ce.get("encoder", "mine")`, and do the same where the expression is loaded.

    Args:
        path: The file.
        trust: Whether the file may run code.

    Raises:
        OptionError: The file may run code, and `trust` is False.
        FileFormatError: The file is missing, damaged, or of another kind, such as a checkpoint of `torch.save`.
    """
    check_flag("trust", trust)
    path = expanded(path)
    read = _reader(path, data := read_bytes(path))
    if not trust:
        raise OptionError(f"{path} can run any code when it is read: say trust=True if you know its author. Else {_WAYS}.", ["trust"])
    try:
        module = read(data)
    except (FileFormatError, ImportError):
        raise
    except Exception as error:
        raise FileFormatError(f"{path} is damaged, or of another version: {type(error).__name__}: {str(error)[:300]}") from error
    for parameter in module.parameters():  # `Module.requires_grad_` refuses TorchScript
        parameter.requires_grad_(False)
    return module


def _reader(path: Path, data: bytes) -> Callable[[bytes], nn.Module]:
    """Returns the function that reads the content of a file, by its kind; nothing is run."""
    if path.suffix == ".onnx":
        return _read_onnx
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        raise FileFormatError(f"{path} is a file of weights alone (safetensors): {_WAYS}.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except Exception as error:
        raise FileFormatError(f"{path} is no TorchScript, no exported program, and has no name that ends in `.onnx`.") from error
    if any(name.startswith("models/") and name.endswith(".json") for name in names):
        return lambda data: torch.export.load(io.BytesIO(data)).module()
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return _read_script
    raise FileFormatError(f"{path} is a checkpoint of `torch.save`, a pickle without the network: {_WAYS}.")


def _read_script(data: bytes) -> nn.Module:
    with warnings.catch_warnings():  # newer versions of torch advise `torch.export`
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(io.BytesIO(data), map_location="cpu")
    return module if hasattr(module, "training") else _Frozen(module)


class _Frozen(nn.Module):
    """A frozen TorchScript module, which has constants in place of parameters and no mode."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.parts = (module,)  # not as a sub-module

    def forward(self, z: Tensor) -> Any:
        return self.parts[0](z)


def _read_onnx(data: bytes) -> nn.Module:
    convert = import_extra("onnx2torch", "onnx").convert
    return convert(import_extra("onnx", "onnx").load_model_from_string(data)).eval()

"""Checks of encoders: networks of any kind that map a batch to one result per row."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from composable_energy.registry import get
from composable_energy.testing import Check, build_subject, named_checks, run_checks

EncoderLike = str | nn.Module | Callable[[], nn.Module]


def check_encoder(encoder: EncoderLike, x: Tensor, *, expected_failures: Mapping[str, str] | None = None) -> None:
    """Runs the checks of an encoder; see `encoder_checks` for the arguments, and `run_checks` for `expected_failures`."""
    run_checks(encoder_checks(encoder, x), expected_failures)


def encoder_checks(encoder: EncoderLike, x: Tensor) -> list[Check]:
    """Returns the checks of an encoder, in eval mode. An output is a tensor, or tensors in tuples, lists and dicts.

    | name | what is checked |
    |---|---|
    | `build` | it can be built, copied, and is an `nn.Module` |
    | `shape` | each output has a row for each input, is finite, and has the device of the inputs |
    | `input` | the inputs are not changed |
    | `randomness` | no random number is drawn, and a second call returns the same |
    | `rows` | the output of an input does not depend on the other inputs of the batch, nor on their order |
    | `copy` | a deep copy has the same outputs to the bit and separate weights |
    | `state` | its `state_dict` restores the outputs of a copy whose tensors have changed, and of another one that was built alike |
    | `gradient` | gradients by the inputs agree with finite differences in float64, so that energies can be pulled back through it |
    | `weights` | every weight that requires a gradient gets one that is finite |
    | `dtypes` | converted to float32 and float64 it returns outputs of that dtype, which agree |

    Args:
        encoder: The encoder, its name, or a function without arguments that builds it, called when a check runs.
        x: At least three distinct inputs, with shape $(B, *)$, where the outputs are finite and smooth.
    """
    return named_checks(_CHECKS, encoder, x, run=_check)


def _check(function: Callable[[nn.Module, Tensor], None], encoder: EncoderLike, x: Tensor) -> None:
    subject = _built(encoder)
    with torch.no_grad():
        function(copy.deepcopy(subject).eval() if function is not _copy else subject, x.detach().clone())
        if function is _state and subject is not encoder:
            other = _built(encoder)
            other.load_state_dict(subject.state_dict())
            advice = "another one with its `state_dict` has other outputs: make each tensor a parameter or buffer"
            _assert_equal(_outputs(other.eval(), x), _outputs(copy.deepcopy(subject).eval(), x), advice)


def _built(encoder: EncoderLike) -> nn.Module:
    return build_subject(encoder, nn.Module, partial(get, "encoder"))


def _outputs(encoder: nn.Module, x: Tensor) -> list[Tensor]:
    """Returns the tensors of the output."""
    leaves = tree_flatten(encoder(x))[0]
    odd = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)]
    assert leaves and not odd, f"the output has no tensors but {', '.join(odd) or 'nothing'}"
    return leaves


def _build(encoder: nn.Module, x: Tensor) -> None:
    assert len(x.unique(dim=0)) >= 3, "the checks need three inputs that differ"


def _shape(encoder: nn.Module, x: Tensor) -> None:
    for n in (len(x), 1):
        for output in _outputs(encoder, x[:n]):
            what = f"an output of {n} inputs has shape {tuple(output.shape)}"
            assert output.ndim > 0 and len(output) == n, f"{what}, expected ({n}, ...)"
            assert output.device == x.device, f"outputs are on {output.device}, the inputs on {x.device}"
            assert bool(output.isfinite().all()), "outputs are not finite"


def _input(encoder: nn.Module, x: Tensor) -> None:
    before = x.clone()
    encoder(x)
    assert torch.equal(x, before), "the inputs have been changed in place"


def _randomness(encoder: nn.Module, x: Tensor) -> None:
    state = torch.get_rng_state()
    first = _outputs(encoder, x)
    assert torch.equal(torch.get_rng_state(), state), "it draws random numbers from torch in eval mode"
    _assert_equal(_outputs(encoder, x), first, "a second call gives other outputs")


def _rows(encoder: nn.Module, x: Tensor) -> None:
    outputs = _outputs(encoder, x)
    alone = zip(*(_outputs(encoder, x[i : i + 1]) for i in range(len(x))), strict=True)
    for output, parts, flipped in zip(outputs, alone, _outputs(encoder, x.flip(0)), strict=True):
        _assert_close(encoder, torch.cat(parts), output, "alone and in a batch", 500)
        _assert_close(encoder, flipped, output.flip(0), "in another order", 500)


def _copy(encoder: nn.Module, x: Tensor) -> None:
    copied, training = copy.deepcopy(encoder).eval(), {module: module.training for module in encoder.modules()}
    _assert_equal(_outputs(copied, x), _outputs(encoder.eval(), x), "a deep copy has other outputs")
    for module, mode in training.items():
        module.training = mode
    assert not {id(p) for p in encoder.parameters()} & {id(p) for p in copied.parameters()}, "a deep copy shares weights with the original"


def _state(encoder: nn.Module, x: Tensor) -> None:
    outputs, changed = _outputs(encoder, x), copy.deepcopy(encoder)
    for value in changed.state_dict().values():
        if value.is_floating_point():
            value.add_(0.5)
    changed.load_state_dict(encoder.state_dict())
    _assert_equal(_outputs(changed, x), outputs, "its `state_dict` leaves out something that outputs depend on")


def _gradient(encoder: nn.Module, x: Tensor) -> None:
    encoder, x = encoder.double(), x.double()
    generator = torch.Generator().manual_seed(0)
    for i, output in enumerate(_outputs(encoder, x)):
        if not output.is_floating_point():
            continue
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(x.device)
        with torch.enable_grad():
            point = x.clone().requires_grad_()
            total = (_outputs(encoder, point)[i] * weights).sum()
            assert total.requires_grad, "outputs are detached from the inputs: remove `detach` and `no_grad`"
            (gradient,) = torch.autograd.grad(total, point)
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        direction /= direction.norm()
        step = 1e-5 * (1 + x.abs().max().item())
        up, down = ((_outputs(encoder, x + sign * step * direction)[i] * weights).sum() for sign in (1, -1))
        slope, expected = ((up - down) / (2 * step)).item(), (gradient * direction).sum().item()
        rounding = 100 * torch.finfo(torch.float64).eps * (1 + weights.abs().sum().item()) / step
        assert abs(slope - expected) <= 1e-4 * (1 + abs(expected)) + rounding, (
            f"autograd gives a slope of {expected:.6g}, finite differences {slope:.6g}"
        )


def _weights(encoder: nn.Module, x: Tensor) -> None:
    if not (learnable := {name: value for name, value in encoder.named_parameters() if value.requires_grad}):
        return
    with torch.enable_grad():
        total = torch.stack([output.square().sum() for output in _outputs(encoder, x) if output.is_floating_point()]).sum()
        assert total.requires_grad, "outputs are detached from the weights: remove `detach` and `no_grad`"
        found = torch.autograd.grad(total, list(learnable.values()), allow_unused=True)
    unused = [name for name, value in zip(learnable, found, strict=True) if value is None]
    assert not unused, f"no gradient reaches {', '.join(unused)}; use it, or set `requires_grad` to False"
    wrong = [name for name, value in zip(learnable, found, strict=True) if value is not None and not bool(value.isfinite().all())]
    assert not wrong, f"the gradient of {', '.join(wrong)} is not finite"


def _dtypes(encoder: nn.Module, x: Tensor) -> None:
    results: dict[torch.dtype, list[Tensor]] = {}
    for dtype in (torch.float64, torch.float32):
        results[dtype] = [output for output in _outputs(copy.deepcopy(encoder).to(dtype), x.to(dtype)) if output.is_floating_point()]
        wrong = {output.dtype for output in results[dtype]} - {dtype}
        assert not wrong, f"inputs of {dtype} have outputs of {wrong.pop()}"
    for wide, short in zip(*results.values(), strict=True):
        _assert_close(encoder, wide.float(), short, "float32 and float64", 50_000)


def _assert_close(encoder: nn.Module, got: Tensor, expected: Tensor, what: str, factor: float) -> None:
    """Asserts that outputs agree to rounding: a network adds at least as many terms as it has parameters."""
    terms, eps = sum(parameter.numel() for parameter in encoder.parameters()), torch.finfo(got.dtype).eps
    tolerance = max(factor, terms**0.5) * eps * (1 + expected.abs().amax().item())
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance, msg=lambda message: f"{what}: {message}")


def _assert_equal(got: Any, expected: Any, message: str) -> None:
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), message


_CHECKS = (_build, _shape, _input, _randomness, _rows, _copy, _state, _gradient, _weights, _dtypes)

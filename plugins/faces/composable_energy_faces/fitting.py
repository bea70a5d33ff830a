"""Fits a network in steps that can be interrupted: what was killed goes on as if it had not been, to the bit."""

from __future__ import annotations

__all__ = ["Effort", "fit", "keyed", "save_atomically"]

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True)
class Effort:
    """How long and how fast to train.

    Attributes:
        steps: Updates.
        rate: The learning rate between warm-up and decay.
        decay: The share of the steps at the end in which the rate falls to zero on a straight line.
        weight_decay: Of AdamW.
        average: Decay of the running average of the weights, which is what is kept.
    """

    steps: int
    rate: float = 2e-3
    decay: float = 0.7
    weight_decay: float = 1e-4
    average: float = 0.998

    def rate_at(self, step: int) -> float:
        """Returns the learning rate of a step: a short warm-up, then level, then falling."""
        progress = step / self.steps
        return self.rate * min(1.0, (step + 1) / 200) * max(0.01, min(1.0, (1 - progress) / self.decay))


def keyed(*key: int) -> torch.Generator:
    """A generator of its own for each key, so that step 1000 draws the same whether or not steps 1 to 999 ran in this process."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % (1 << 63)
    return torch.Generator().manual_seed(seed)


def save_atomically(content: Any, path: Path) -> None:
    """Saves so that a kill leaves the old file or the new one, never a half."""
    half = path.with_suffix(".half")
    torch.save(content, half)
    half.replace(path)


def fit(
    network: nn.Module,
    loss: Callable[[int], Tensor],
    effort: Effort,
    *,
    checkpoint: Path,
    every: float = 30.0,
) -> dict[str, float]:
    """Trains a network in place, from its checkpoint if there is one, and leaves it with its averaged weights, in eval mode.

    Args:
        network: What to train.
        loss: The loss at a step, with shape $()$; all its randomness must come from `keyed(..., step)`.
        effort: How long and how fast.
        checkpoint: The file to go on from and to write to.
        every: Seconds between checkpoints.

    Returns:
        Steps, the running loss at the end, and the processor seconds it took, over all runs.
    """
    averaged = copy.deepcopy(network).eval()
    optimizer = torch.optim.AdamW(network.parameters(), effort.rate, weight_decay=effort.weight_decay, foreach=True)
    state = {"step": 0, "running": 0.0, "seconds": 0.0}
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    network.train()
    pairs = list(zip(averaged.parameters(), network.parameters(), strict=True))
    slow, fast = [pair[0].detach() for pair in pairs], [pair[1].detach() for pair in pairs]

    def save() -> None:
        content = {
            "network": network.state_dict(),
            "averaged": averaged.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        save_atomically({**content, "state": state}, checkpoint)

    started, last_save = time.process_time(), time.monotonic()
    bar = tqdm(total=effort.steps, initial=int(state["step"]), desc=checkpoint.stem, mininterval=5.0, smoothing=0.05)
    while state["step"] < effort.steps:
        step = int(state["step"])
        for group in optimizer.param_groups:
            group["lr"] = effort.rate_at(step)
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0, foreach=True)
        optimizer.step()
        keep = min(effort.average, (1 + step) / (10 + step))
        torch._foreach_lerp_(slow, fast, 1 - keep)
        state["running"] = value.item() if step == 0 else 0.995 * state["running"] + 0.005 * value.item()
        state["step"] = step + 1
        state["seconds"] += time.process_time() - started
        started = time.process_time()
        bar.update()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{state['running']:.4f}", cpu=f"{state['seconds']:.0f}s", refresh=False)
        if time.monotonic() - last_save > every:
            save()
            last_save = time.monotonic()
    bar.close()
    save()
    averaged_buffers = dict(network.named_buffers())
    network.load_state_dict({**averaged.state_dict(), **{k: v for k, v in averaged_buffers.items() if k in averaged.state_dict()}})
    network.eval()
    return {"steps": state["step"], "loss": state["running"], "seconds": state["seconds"]}

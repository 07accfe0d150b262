"""The parts of a training: worker processes, the optimizer step, learning rates, the weights' average, checkpoints.

Two processes of one thread that average their gradients are faster on two CPU cores than one process of two threads.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

WORKERS = 2


def work_folder() -> Path:
    """Return the folder of images, latents and checkpoints (SPRITEWORLD_WORK, default build/spriteworld)."""
    return Path(os.environ.get("SPRITEWORLD_WORK", "build/spriteworld")).absolute()


def run_workers(work: Callable[..., None], *args: Any, workers: int = WORKERS) -> None:
    """Call `work(rank, workers, *args)` in processes of one thread each, connected by gloo."""
    rendezvous = work_folder() / f"rendezvous-{os.getpid()}-{time.monotonic_ns()}"
    rendezvous.parent.mkdir(parents=True, exist_ok=True)
    try:
        spawn(_worker, (workers, str(rendezvous), work, args), nprocs=workers, join=True)
    finally:
        rendezvous.unlink(missing_ok=True)


def _worker(rank: int, workers: int, rendezvous: str, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers)
    try:
        work(rank, workers, *args)
    finally:
        dist.destroy_process_group()


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each worker's gradients by the mean over workers, with one all-reduce."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for p, part in zip(parameters, flat.split([g.numel() for g in grads]), strict=True):
        p.grad = part.view_as(p)


def learning_rate(step: int, steps: int, peak: float, warm_up: int, hold: float) -> float:
    """Return the learning rate: linear warm-up, constant until `hold` of the steps, then a cosine to 2% of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = max(0.0, (step / steps - hold) / (1 - hold))
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    average: Iterable[Tensor],
    step: int,
    decay: float,
) -> None:
    """Do one step with the mean gradient of all workers, clipped to norm 1, and update the weights' moving average."""
    optimizer.zero_grad()
    loss.backward()
    average_gradients(parameters)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    update_average(average, parameters, step, decay)


@torch.no_grad()
def copy_average(parameters: Iterable[Tensor], average: Iterable[Tensor]) -> None:
    """Copy the averaged weights into the parameters."""
    for p, a in zip(parameters, average, strict=True):
        p.copy_(a)


@torch.no_grad()
def update_average(average: Iterable[Tensor], current: Iterable[Tensor], step: int, decay: float) -> None:
    """Update the exponential moving average of weights, in place, with a smaller decay during the first steps."""
    effective_decay = min(decay, (1 + step) / (10 + step))
    for a, c in zip(average, current, strict=True):
        a.lerp_(c, 1 - effective_decay)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: a killed process leaves the previous one intact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    return torch.load(path, weights_only=True) if path.exists() else None


def replace_folder(new: Path, folder: Path) -> None:
    """Replace `folder` by the complete folder `new`."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)

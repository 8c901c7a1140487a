"""Fine-tunes that changed few weights, by some units in the last place, as reinforcement learning in 16 bits does."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def tune_sparsely(source: Path, target: Path, share: float, steps: tuple[int, int], seed: int = 1) -> Path:
    """A copy of a single-file bf16 model of which so many elements of each matrix changed.

    Args:
        source: a Hugging Face directory.
        target: the new one.
        share: of the elements of every matrix, drawn at random.
        steps: the fewest and the most units in the last place that an element moves, up or down.
        seed: of both.
    """
    shutil.copytree(source, target)
    generator = torch.Generator().manual_seed(seed)
    file = target / "model.safetensors"
    state = load_file(file)
    save_file({name: _moved(w, share, steps, generator) for name, w in state.items()}, file, {"format": "pt"})
    return target


def _moved(weight: torch.Tensor, share: float, steps: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    if weight.dim() == 1:
        return weight
    moves = torch.rand(weight.shape, generator=generator) < share
    size = torch.randint(steps[0], steps[1] + 1, weight.shape, generator=generator)
    up = 2 * torch.randint(0, 2, weight.shape, generator=generator) - 1
    bits = weight.view(torch.int16).int()
    sign, magnitude = bits & -0x8000, bits & 0x7FFF
    moved = sign | (magnitude + torch.where(moves, size * up, 0)).clamp(0, 0x7F7F)
    return moved.to(torch.int16).view(torch.bfloat16)

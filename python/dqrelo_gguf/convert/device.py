"""The device that compresses: the CPU, or a GPU where torch has one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dqrelo_gguf.compress.blocks import CPU
from dqrelo_gguf.errors import InputError, printable

OPTION = "--device"
_NAME = re.compile(r"(cpu(:0)?|cuda(:(?P<index>[0-9]{1,4}))?)", re.ASCII)


def device_of(name: str) -> torch.device:
    """The device of a name, such as `cpu`, `cuda` (the first GPU) or `cuda:1`.

    Raises:
        InputError: there is no such device.

    >>> device_of("cpu:0")
    device(type='cpu')
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise InputError(f"{OPTION} {printable(name)}: no device of this name. Give cpu, cuda or cuda:N")
    if name.startswith("cpu"):
        return CPU
    if not torch.cuda.is_available():
        raise InputError(
            f"{OPTION} {name}: torch {torch.__version__} has no CUDA device: install a CUDA build of torch, or leave {OPTION} out"
        )
    index, n_devices = int(found["index"] or 0), torch.cuda.device_count()
    if index >= n_devices:
        raise InputError(f"{OPTION} {name}: torch has {n_devices} CUDA device(s), cuda:0 to cuda:{n_devices - 1}")
    return torch.device("cuda", index)


def as_metadata(device: torch.device) -> dict[str, str]:
    """What a file's options say of the device: nothing of the CPU."""
    return {} if device == CPU else {"device": device.type}


@contextmanager
def within_memory(weight: str, device: torch.device) -> Iterator[None]:
    """Says which weight the device's memory is too small for.

    Args:
        weight: what is worked on.
        device: that does.

    Raises:
        InputError: the device ran out of memory.
    """
    try:
        yield
    except RuntimeError as e:
        # torch's own allocator has an error of its own; the libraries under it name a status.
        if not isinstance(e, torch.cuda.OutOfMemoryError) and "ALLOC_FAILED" not in str(e):
            raise
        raise InputError(f"{weight}: the memory of {device} is too small for it. Use {OPTION} cpu") from e

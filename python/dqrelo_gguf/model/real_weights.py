"""A check inside llama.cpp's conversion: what becomes a weight is stored as real numbers, or was made into such."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from dqrelo_gguf.errors import InputError, printable

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CAUSES = {
    "int8": "bitsandbytes, or another quantisation to 8 bits",
    "uint8": "bitsandbytes, or another quantisation to 4 or 8 bits",
    "int32": "GPTQ or AWQ",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
}

if TYPE_CHECKING:

    class _Conversion:
        hparams: dict[str, Any]

        def get_tensors(self) -> Iterator[tuple[str, Any]]: ...
        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterable[tuple[str, Any]]: ...
else:
    _Conversion = object


class RealWeights(_Conversion):
    """Goes before a model class of the conversion.

    The conversion makes float32 of every type, so int8 without its scales would become a weight of whole numbers. Tensors
    that become none (masks, positions) may have any type, and so may those that the model class unpacks itself (MXFP4).
    """

    label: str  # of the fine-tune, for messages
    _odd: Mapping[str, Any] = MappingProxyType(
        {}
    )  # Tensors that the conversion makes itself come before get_tensors().

    def get_tensors(self) -> Iterator[tuple[str, Any]]:
        """The tensors after they were dequantised, where config.json says how; remembers those that are no real numbers."""
        odd: dict[str, Any] = {}
        self._odd = odd
        for name, tensor in super().get_tensors():
            if tensor.dtype not in _REAL:
                odd[name] = tensor.dtype
            yield name, tensor

    def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterable[tuple[str, Any]]:
        """What a tensor becomes.

        Raises:
            InputError: a weight, of numbers that are none.
        """
        made = list(super().modify_tensors(data_torch, name, bid))
        odd = self._odd.get(name)
        if odd is not None and (made or (name.endswith(".weight") and not self.hparams.get("quantization_config"))):
            dtype = str(odd).removeprefix("torch.")
            cause = f"{_CAUSES[dtype]} without its scales? " if dtype in _CAUSES else ""
            raise InputError(
                f"{self.label}: tensor '{printable(name)}' is stored as {dtype}, which is no weight. {cause}"
                "Give the fine-tune in bf16, f16 or f32"
            )
        return made

"""What the headers of a Hugging Face directory's weight files say, checked before a conversion believes it."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from dqrelo_gguf.errors import InputError, printable
from dqrelo_gguf.file.open_file import require_file
from dqrelo_gguf.model.weight_files import WeightFiles

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_MAX_DIMS = 8
# Bytes of an element, by safetensors' names.
_ELEMENT_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("F16", "BF16", "I16"), 2),
    **dict.fromkeys(("F32", "I32"), 4),
    **dict.fromkeys(("F64", "I64"), 8),
}

# Names that show that the tensors are not those of the plain model: a pattern, what it is, and the way out.
_FOREIGN = (
    (r"(.*\.)?_orig_mod\..*", "torch.compile's prefix", "Save the model that was compiled (model._orig_mod)"),
    (r"module\..*", "DistributedDataParallel's or DeepSpeed's prefix", "Save the model inside (model.module)"),
    (r"(.*\.)?(_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_flat_param)\b.*", "a wrapper's prefix",
     "Save the full state dict of the model inside"),
    (r".*\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)\b.*", "PEFT's adapter", "Merge it (merge_and_unload) and save"),
    (r"base_model\.model\..*|.*\.(base_layer|modules_to_save|original_module)\..*", "PEFT's wrapper",
     "Merge the adapter (merge_and_unload) and save the model"),
)  # fmt: skip

# Tensors that belong to quantised weights.
_QUANTISED = (
    ("bitsandbytes", r".*\.(SCB|absmax|quant_map|nested_absmax|nested_quant_map|weight_format|quant_state\..*)"),
    ("GPTQ or AWQ", r".*\.(qweight|qzeros|g_idx|scales)"),
    ("fp8", r".*[._](weight_scale|weight_scale_inv|scale_inv|qscale_weight|qscale_act|activation_scale)"),
    ("compressed-tensors", r".*\.(weight_packed|weight_shape|weight_zero_point|weight_global_scale)"),
    ("HQQ", r".*\.(W_q|meta)"),
)
# What llama.cpp's conversion turns into numbers again.
_READ_METHODS = ("bitnet", "compressed-tensors", "fp8", "gptq", "modelopt", "mxfp4")
_DEQUANTISE = "Give the fine-tune in bf16, f16 or f32 (model.dequantize(), or load it unquantised, and save)"


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]


def check_weight_headers(
    path: Path, files: WeightFiles, config: Mapping[str, Any], sizes: Mapping[str, int] = MappingProxyType({})
) -> list[str]:
    """Checks that every file is whole, that names and shapes are a plain model's, and that the index is of these files.

    Args:
        path: the directory.
        files: which of its files count.
        config: its config.json.
        sizes: bytes of files of which the headers alone are here, by name.

    Returns:
        The names of all tensors, sorted.

    Raises:
        InputError: one line with the file or the tensor, the cause and the way out.
    """
    _check_method(path, config)
    names: set[str] = set()
    for file_name in files.names:
        file = path / file_name
        tensors = _headers(file, sizes.get(file_name))
        for tensor in tensors:
            _check_tensor(file, tensor)
        names_here = {t.name for t in tensors}
        twice = names & names_here
        if twice:
            raise InputError(f"{file}: tensor '{printable(min(twice))}' is in another file, too. Two sets of shards?")
        names |= names_here
        _check_index(path, files, file_name, names_here)
    if config.get("quantization_config") is None and not (path / "hf_quant_config.json").is_file():
        _check_quantised(path, names)
    return sorted(names)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a small file, safetensors or a state dict of PyTorch, after its header was checked.

    Raises:
        InputError: the file is not whole, or holds more than tensors.
    """
    _headers(path)
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def _headers(path: Path, n_file_bytes: int | None = None) -> list[_Tensor]:
    require_file(path)
    return _safetensors(path, n_file_bytes) if path.suffix == ".safetensors" else _pickled(path)


def _check_method(path: Path, config: Mapping[str, Any]) -> None:
    quantisation = config.get("quantization_config")
    if not isinstance(quantisation, dict):
        return
    method = quantisation.get("quant_method")
    if method is None and ("load_in_8bit" in quantisation or "load_in_4bit" in quantisation):
        method = "bitsandbytes"
    if method is not None and method not in _READ_METHODS:
        raise InputError(
            f"{path}: its weights are quantised ({printable(str(method))[:40]}), not a fine-tune's own. {_DEQUANTISE}"
        )


def _check_tensor(file: Path, tensor: _Tensor) -> None:
    name = printable(tensor.name)
    for pattern, what, way_out in _FOREIGN:
        if re.fullmatch(pattern, tensor.name):
            raise InputError(f"{file}: tensor '{name}' has {what} in its name. {way_out}")
    if prod(tensor.shape) == 0:
        raise InputError(
            f"{file}: tensor '{name}' has shape {list(tensor.shape)}: nothing is in it. A model saved under DeepSpeed ZeRO-3 "
            "without gathering? Set stage3_gather_16bit_weights_on_model_save, or run zero_to_fp32.py"
        )


def _check_index(path: Path, files: WeightFiles, file_name: str, names_here: set[str]) -> None:
    """The index is of these files, and not of those that had their names before."""
    expected = {name for name, file in files.index.items() if file == file_name}
    odd = sorted(expected - names_here) or sorted(names_here - set(files.index) if files.index else ())
    if odd:
        where = "has no such tensor" if odd[0] in expected else "has it, and the index does not"
        raise InputError(
            f"{path}: {files.index_name} is stale: tensor '{printable(odd[0])}': {file_name} {where}. Another save's index?"
        )


def _check_quantised(path: Path, names: set[str]) -> None:
    for method, pattern in _QUANTISED:
        found = [name for name in names if re.fullmatch(pattern, name)]
        if found:
            raise InputError(
                f"{path}: tensor '{printable(min(found))}' belongs to weights quantised with {method}, but config.json has "
                f"no quantization_config. {_DEQUANTISE}"
            )


# --- safetensors ---


def _safetensors(path: Path, n_file_bytes: int | None = None) -> list[_Tensor]:
    """Names and shapes from the header of a file that is whole; of one elsewhere its size is given."""
    if n_file_bytes is None:
        n_file_bytes = path.stat().st_size
    with path.open("rb") as f:
        n_header = int.from_bytes(f.read(8), "little")
        if n_file_bytes < 8 or n_header > n_file_bytes - 8:
            raise InputError(
                f"{path}: has {n_file_bytes} bytes, its header alone needs {8 + n_header}. Truncated download?"
            )
        if n_header > _MAX_HEADER_BYTES:
            raise InputError(f"{path}: has a header of {n_header} bytes, expected at most {_MAX_HEADER_BYTES}")
        header = _parse_header(path, f.read(n_header))
    n_data, tensors = 0, []
    for name, entry in header.items():
        tensors.append(_parse_entry(path, name, entry))
        n_data = max(n_data, entry["data_offsets"][1])
    n_expected = 8 + n_header + n_data
    if n_file_bytes != n_expected:
        cause = "Truncated download?" if n_file_bytes < n_expected else "It is damaged: fetch it again"
        raise InputError(f"{path}: has {n_file_bytes} bytes, its header says {n_expected}. {cause}")
    return tensors


def _parse_header(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
        return {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError, RecursionError) as e:
        raise InputError(f"{path}: is not a safetensors file, its header cannot be read") from e


def _parse_entry(path: Path, name: str, entry: Any) -> _Tensor:
    where = f"{path}: is not a safetensors file, its header cannot be read: tensor '{printable(name)}'"
    keys = ("dtype", "shape", "data_offsets")
    if not isinstance(entry, dict) or any(key not in entry for key in keys):
        raise InputError(f"{where} lacks one of {', '.join(keys)}")
    dtype, shape, offsets = (entry[key] for key in keys)
    if not _are_sizes(shape, range(_MAX_DIMS + 1)) or not _are_sizes(offsets, range(2, 3)):
        raise InputError(f"{where} has a shape or offsets that are none")
    if not isinstance(dtype, str) or dtype not in _ELEMENT_BYTES:
        raise InputError(
            f"{path}: tensor '{printable(name)}' has type {printable(str(dtype))[:20]}, expected BF16, F16 or F32. {_DEQUANTISE}"
        )
    n_bytes = prod(shape) * _ELEMENT_BYTES[dtype]
    if offsets[1] - offsets[0] != n_bytes:
        raise InputError(f"{where} has {offsets[1] - offsets[0]} bytes, its shape {shape} needs {n_bytes}")
    return _Tensor(name, tuple(shape))


def _are_sizes(numbers: Any, lengths: range) -> bool:
    return (
        isinstance(numbers, list)
        and len(numbers) in lengths
        and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in numbers)
    )


# --- PyTorch's own format ---


def _pickled(path: Path) -> list[_Tensor]:
    """Names and shapes of a state dict; no data is read, and no code of the file is run."""
    way_out = "Load the model and save it with save_pretrained (safetensors)"
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path}: is not a whole file of PyTorch 1.6 or later. Truncated download, or an older form? {way_out}"
        )
    try:
        state = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception as e:  # The unpickler raises whatever a hostile file makes it raise.
        raise InputError(f"{path}: holds more than tensors, which is not loaded ({type(e).__name__}). {way_out}") from e
    if not isinstance(state, dict) or not state or not all(isinstance(t, torch.Tensor) for t in state.values()):
        keys = (
            ", ".join(printable(str(key)) for key in list(state)[:4])
            if isinstance(state, dict)
            else type(state).__name__
        )
        raise InputError(f"{path}: is not a model's state dict, it holds {keys[:100]}. {way_out}")
    return [_Tensor(str(name), tuple(t.shape)) for name, t in state.items()]

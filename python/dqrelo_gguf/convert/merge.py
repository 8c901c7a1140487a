"""Base and deltas back to one plain GGUF, which any llama.cpp runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import all_local, local
from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.convert.merged_model import Blend, MergedModel
from dqrelo_gguf.convert.plain_model import out_type, plain_data_bytes, write_tensor
from dqrelo_gguf.file.container import pack_header
from dqrelo_gguf.file.fingerprint import Comparison
from dqrelo_gguf.file.layout import Type
from dqrelo_gguf.file.model_file import files_of
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.output import check_outputs, check_target, new_file
from dqrelo_gguf.progress import Phases, Silent

OUT_TYPES = {"f16": Type.F16, "bf16": Type.BF16, "f32": Type.F32, "q8_0": Type.Q8_0}


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote."""

    outfile: Path
    n_tensors: int
    n_changed: int
    n_file_bytes: int
    comparison: Comparison


@dataclass(frozen=True)
class MergeOptions:
    """How to merge.

    Args:
        out_type: of the matrices, a key of OUT_TYPES; vectors are F32.
        allow_other_base: accept another quantisation of the delta's base.
        verify: check the delta's digests first.
        force: replace an existing file.
        n_threads: None for all cores.
        scales: what each delta is multiplied by; none are 1 for each.
    """

    out_type: str = "f16"
    allow_other_base: bool = False
    verify: bool = True
    force: bool = False
    n_threads: int | None = None
    scales: tuple[float, ...] = ()


def merge(
    base_path: str | os.PathLike[str],
    delta_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    outfile: str | os.PathLike[str],
    options: MergeOptions | None = None,
    phases: Phases = Silent,
) -> MergeResult:
    """Writes W_base + D_hat of every weight as a plain GGUF with the fine-tune's name, template and tokens.

    Args:
        base_path: the base, whole or split; or an address.
        delta_path: the delta, or several, or addresses: W_base + scale_0 * D_hat_0 + scale_1 * D_hat_1 + ... with the first one's template and tokens.
        outfile: the merged model.
        options: how.
        phases: shows the progress.

    Raises:
        BaseMismatchError: a delta was made for another base.
        FormatError: a delta is damaged.
        InputError: the scales are not one for each delta, or not finite.
        OutputExistsError, DiskFullError: the output cannot be written; nothing is left behind.
    """
    out = Path(outfile)
    options = options or MergeOptions()
    check_outputs([out], [], options.force)  # It fails at once, not after the work.
    deltas = [delta_path] if isinstance(delta_path, (str, os.PathLike)) else delta_path
    base_path, paths = local(base_path, Kind.MODEL), all_local(deltas, Kind.DELTA)
    check_outputs([out], [*files_of(base_path), *paths], options.force)
    wanted = OUT_TYPES[options.out_type]
    base = GgufModel(base_path)
    model = MergedModel(base, Blend(tuple(paths), options.scales, options.allow_other_base, options.verify))
    types = {name: out_type(base, name, wanted) for name in base.shapes}
    header = pack_header(list(model.metadata(wanted).items()), [(n, base.shapes[n], t) for n, t in types.items()])
    n_file_bytes = len(header) + plain_data_bytes(base, wanted)
    check_target(out, options.force, n_file_bytes)
    n_params = sum(prod(ne) for ne in base.shapes.values())
    with (
        open_blocks(options.n_threads) as blocks,
        new_file(out, options.force) as file,
        phases("merging", n_params) as progress,
    ):
        file.write(header)
        for name, t in types.items():
            values = model.load(name, blocks)
            write_tensor(file, values, t)
            progress.step(values.size, name)
    return MergeResult(out, len(types), len(model.changed), n_file_bytes, model.comparison)

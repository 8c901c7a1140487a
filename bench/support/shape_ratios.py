"""The ratio that the method `best` gives each kind of a large model's matrices: one price for a byte holds for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from dqrelo_gguf.compress.mixes import Spectrum, choose
from dqrelo_gguf.convert import passes
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.model.pairing import Selection
from support.large_shapes import Kind, LargeShape, kinds, tensors


class _SpectraFound(Exception):  # noqa: N818  # It ends a conversion, and is no error.
    def __init__(self, spectra: Mapping[str, Spectrum]) -> None:
        super().__init__()
        self.spectra = spectra


def _end(_pairs: Any, _options: Any, spectra: Mapping[str, Spectrum]) -> NoReturn:
    raise _SpectraFound(spectra)


def best_ratios(base: Path, tuned: str, shape: LargeShape, ratio: Fraction, n_threads: int) -> dict[str, Fraction]:
    """Bytes of each kind's delta over its 16-bit bytes.

    Args:
        base: GGUF with some blocks of the shape.
        tuned: address of the fine-tune.
        shape: of the whole model.
        ratio: of the whole model.
        n_threads: to work with.

    Returns:
        The ratios by the first name of the kind. The spectra of the blocks that there are stand for all: not of one alone, because
        where two mixes cost nearly the same, some weights get the one and some the other, and they take different time.
    """
    pattern = "|".join(kind.pattern(only_one=not kind.in_blocks) for kind in kinds(shape))
    job = Job(base, tuned, base.with_name("spectra.dq.gguf"), force=True, stream=True, n_threads=n_threads)
    options = Options(ratio=ratio, method="best", selection=Selection.of(pattern, None))
    try:
        with mock.patch.object(passes, "plan_best", _end):
            convert(job, options)
    except _SpectraFound as found:
        return _ratios(shape, ratio, found.spectra)


def _ratios(shape: LargeShape, ratio: Fraction, spectra: Mapping[str, Spectrum]) -> dict[str, Fraction]:
    of_kind = {kind.names[0]: _of_all(kind, shape, spectra) for kind in kinds(shape)}
    dims = tensors(shape).values()
    n_vector_bytes = 4 * sum(prod(d) for d in dims if len(d) == 1)
    every = [s for own in of_kind.values() for s in own]
    chosen = iter(choose(every, ratio, ratio * 2 * sum(map(prod, dims)), n_vector_bytes))
    n_bytes = {name: sum(s.n_bytes(next(chosen)) for s in own) for name, own in of_kind.items()}
    return {k.names[0]: Fraction(n_bytes[k.names[0]], 2 * k.n_elements * k.count(shape)) for k in kinds(shape)}


def _of_all(kind: Kind, shape: LargeShape, spectra: Mapping[str, Spectrum]) -> list[Spectrum]:
    """A spectrum for each matrix of a kind in the whole model."""
    if not kind.in_blocks:
        return [spectra[f"{kind.names[0]}.weight"]] * kind.count(shape)
    n_blocks = 1 + max(int(name.split(".")[1]) for name in spectra if name.startswith("blk."))
    return [spectra[f"blk.{i % n_blocks}.{name}.weight"] for name in kind.names for i in range(shape.n_layer)]

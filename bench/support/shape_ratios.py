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
        The ratios by the first name of the kind. The spectra of one matrix stand for all of its kind.
    """
    of_kind = {kind.names[0]: kind for kind in kinds(shape)}
    pattern = "|".join(kind.pattern(only_one=True) for kind in of_kind.values())
    job = Job(base, tuned, base.with_name("spectra.dq.gguf"), force=True, stream=True, n_threads=n_threads)
    options = Options(ratio=ratio, method="best", selection=Selection.of(pattern, None))
    try:
        with mock.patch.object(passes, "plan_best", _end):
            convert(job, options)
    except _SpectraFound as found:
        spectra = {name.removesuffix(".weight").split(".")[-1]: s for name, s in found.spectra.items()}
    return _ratios(of_kind, spectra, shape, ratio)


def _ratios(
    of_kind: Mapping[str, Kind], spectra: Mapping[str, Spectrum], shape: LargeShape, ratio: Fraction
) -> dict[str, Fraction]:
    every = [spectra[name] for name, kind in of_kind.items() for _ in range(kind.count(shape))]
    dims = tensors(shape).values()
    n_vector_bytes = 4 * sum(prod(d) for d in dims if len(d) == 1)
    chosen = iter(choose(every, ratio, ratio * 2 * sum(map(prod, dims)), n_vector_bytes))
    found = {}
    for name, kind in of_kind.items():
        n_bytes = sum(spectra[name].n_bytes(next(chosen)) for _ in range(kind.count(shape)))
        found[name] = Fraction(n_bytes, 2 * kind.n_elements * kind.count(shape))
    return found
